"""The shortened recipe of the kill tests: how it is run, which phase it is in, what it left behind, and whether two runs are the same
bit for bit.

Reads /proc, so Linux only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

FAULT_REWARDS = Path(__file__).parent / "fault_rewards"
MARKS, TAG = "R1MEGA_SOAK_MARKS", "R1MEGA_SOAK_RUN"
STEPS, UPDATES_PER_ROLLOUT, PROMPTS_PER_REPLICA, PROMPTS_PER_UNIT = 8, 2, 4, 2
OVERRIDES = (
    "stages.base.steps=6", "stages.base.documents_per_step=16", "stages.base.tokenizer_documents=300", "stages.base.checkpoint.every=2",
    f"stages.zero.steps={STEPS}", f"stages.zero.updates_per_rollout={UPDATES_PER_ROLLOUT}", "stages.zero.group_size=4",
    f"stages.zero.prompts_per_rollout={2 * PROMPTS_PER_REPLICA}", f"stages.zero.prompts_per_unit={PROMPTS_PER_UNIT}",
    "stages.zero.reference_every=4", "stages.zero.checkpoint.every=2", "stages.zero.algorithm.kl_coefficient=0.05",
    "stages.zero.evaluation.max_problems=8", "stages.zero.evaluation.samples=2", "stages.zero.evaluation.every=4",
    "rollout.max_tokens=32", "stages.score.evaluation.max_problems=2", "stages.score.evaluation.samples=1",
    "+stages.zero.reward.terms.variety={name: variety, settings: {pause_s: 0.2}}",
)
TIMES = ("time", "seconds", "tokens_per_second")  # and every key that ends in _seconds: what may differ between two runs


@dataclass
class Run:
    """One run folder, and the driver process while there is one."""

    folder: Path
    arguments: tuple[str, ...] = ()
    recipe: tuple[str, ...] = ("recipe=r1_zero_tiny", *OVERRIDES)
    process: subprocess.Popen[str] | None = None
    said: str = ""
    tag: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def marks(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.marks")

    def stage(self, name: str) -> Path:
        return self.folder / "stages" / name / "current"

    def start(self) -> subprocess.Popen[str]:
        self.marks.mkdir(exist_ok=True)
        path = os.pathsep.join(filter(None, (str(FAULT_REWARDS), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, MARKS: str(self.marks), TAG: self.tag, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "r1mega", "run", f"output_dir={self.folder}", *self.recipe, *self.arguments]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        return self.process

    def wait(self, timeout: float) -> int:
        """The driver's exit code; what it said is in `said`. On a time-out everything of the run is killed."""
        assert self.process
        try:
            self.said = self.process.communicate(timeout=timeout)[1]
        except subprocess.TimeoutExpired:
            self.end()
            raise
        return self.process.returncode

    def end(self) -> None:
        """Kill whatever is left of the run."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """Every living process of this run, wherever it hides: its environment carries the run's tag."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(TAG) == self.tag:
                    found.append(process)
        return found

    def ranks(self) -> dict[int, int]:
        """rank -> process id, of the ranks at work."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if "r1mega.recipe.worker" in process.cmdline():
                    found[int(process.environ()["RANK"])] = process.pid
        return found

    def copy(self, folder: Path) -> Run:
        """A run in a new folder that begins with what this one has finished."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Run(folder, recipe=self.recipe)

    def phase(self) -> str:
        """What the run is doing, as its files tell: base, evaluating, generating, scoring, training, saving, exporting, or `none` between."""
        zero = self.stage("zero")
        if not zero.exists():
            return "base" if steps_done(self.stage("base")) else "none"
        if any((zero / "checkpoints").glob("step_*.tmp-*")):
            return "saving"
        if any((zero / "artifacts").glob("checkpoint.tmp-*")):
            return "exporting"
        if not (zero / "evaluation_before.json").exists():
            return "evaluating" if (zero / "logs" / "rank1.log").exists() and list(self.marks.iterdir()) else "none"
        done = steps_done(zero)
        if done >= STEPS:
            return "evaluating"
        if any(Path(f"/proc/{mark.name}").exists() for mark in self.marks.iterdir()):
            return "scoring"
        if done % UPDATES_PER_ROLLOUT:
            return "training"
        units = len(list((zero / "rollouts/ledger").glob(f"replica_*/step_{done // UPDATES_PER_ROLLOUT:08d}/unit_*.bank")))
        return "training" if units == 2 * PROMPTS_PER_REPLICA // PROMPTS_PER_UNIT else "generating"


def at_work(folder: Path) -> dict[str, str]:
    """Stage -> what it is doing, for the stages of a run folder that its manifests call running: one, or none between two stages."""
    running = [path.parent for path in folder.glob("stages/*/current/manifest.json") if '"state": "running"' in path.read_text()]
    return {stage.parent.name: doing(stage) for stage in running}


def doing(stage: Path) -> str:
    """What a stage of any kind is doing, as its files tell: starting, saving, exporting, generating, `step <N> done`, or setting up."""
    logs = stage / "logs" / "rank0.log"
    if not logs.exists() or not logs.stat().st_size:
        return "starting"
    if any((stage / "checkpoints").glob("step_*.tmp-*")):
        return "saving"
    if any((stage / "artifacts").glob("*.tmp-*")) or any((stage / "artifacts").glob(".*")):
        return "exporting"
    if done := steps_done(stage):
        return f"step {done} done"
    units = len(list(stage.rglob("unit_*.bank")))
    return f"unit {units} banked" if units else "setting up"


def steps_done(stage: Path) -> int:
    """The newest step in a stage's metrics."""
    path = stage / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    with contextlib.suppress(IndexError, ValueError):  # no line yet, or a torn one
        return int(json.loads(lines[-1])["step"])
    return 0


# ------------------------------------------------------------------------------------------------------------------------------ the same?


def differences(run: Run, reference: Run) -> list[str]:
    """Everything in which the ends of two runs differ; empty when every tensor and every number is the same."""
    return list(_differences(run, reference))


def _differences(run: Run, reference: Run) -> Iterator[str]:
    for stage in ("base", "zero"):
        here, there = run.stage(stage), reference.stage(stage)
        artifact = Path("artifacts/checkpoint")
        if (here / artifact / "content.sha256").read_text() != (there / artifact / "content.sha256").read_text():
            yield f"{stage}: the content digests of the checkpoint artifacts differ"
        for folder in (artifact, last_checkpoint(there).relative_to(there.resolve())):
            yield from _unequal(f"{stage}/{folder}: tensor", tensors(here / folder), tensors(there / folder))
        yield from _unequal_steps(stage, metrics(here), metrics(there))
    states = [json.loads((last_checkpoint(r.stage("zero")) / "state.json").read_text()) for r in (run, reference)]
    yield from _unequal("zero: state.json:", *states)
    for name in ("evaluation_before.json", "evaluation_00000004.json", "rollouts/samples.jsonl", "rollouts/samples_held_out.jsonl"):
        if (run.stage("zero") / name).read_bytes() != (reference.stage("zero") / name).read_bytes():
            yield f"zero: {name} differs"
    results = [json.loads((r.folder / "summary.json").read_text())["stages"]["zero"]["metrics"] for r in (run, reference)]
    yield from _unequal("zero: metric", *results)


def _unequal(what: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    wrong = [name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
    if wrong:
        yield f"{what} {wrong[0]} differs (and {len(wrong) - 1} of {len(theirs)} others)"


def _unequal_steps(stage: str, mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Iterator[str]:
    twice = [step for step, count in Counter(line["step"] for line in mine).items() if count > 1]
    if twice or [line["step"] for line in mine] != [line["step"] for line in theirs]:
        yield f"{stage}: metrics.jsonl has the steps {[line['step'] for line in mine]}"
        return
    for one, other in zip(mine, theirs, strict=True):
        yield from _unequal(f"{stage}: metrics.jsonl step {one['step']}:", one, other)


def metrics(stage: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times."""
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES and not key.endswith("_seconds")} for line in lines]


def last_checkpoint(stage: Path) -> Path:
    """The newest checkpoint of a stage."""
    return max(path for path in (stage.resolve() / "checkpoints").iterdir() if path.name[5:].isdigit())


def tensors(folder: Path) -> dict[str, str]:
    """The digest of every tensor in a distributed checkpoint, whatever it belongs to: weights, optimizer, reference policy."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    reader = FileSystemReader(folder)
    stored = {name: about for name, about in reader.read_metadata().state_dict_metadata.items() if isinstance(about, TensorStorageMetadata)}
    whole = {name: torch.empty(about.size, dtype=about.properties.dtype) for name, about in stored.items()}
    _load_state_dict(dict(whole), reader, no_dist=True)
    return {name: hashlib.sha256(memoryview(tensor.reshape(-1).view(torch.uint8).numpy())).hexdigest() for name, tensor in whole.items()}
