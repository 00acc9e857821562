"""Every bad input, tried through the real command line, and what it printed.

`python tests/soak/bad_input_table.py [NAME ...]` prints the table.

`tests/integration/test_bad_input.py` runs the same cases and judges them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FAULT_REWARDS = Path(__file__).parent / "fault_rewards"
TINY = ("stages.base.steps=1", "stages.base.documents_per_step=8", "stages.base.tokenizer_documents=300", "stages.zero.steps=2",
        "stages.zero.prompts_per_rollout=4", "stages.zero.group_size=2", "stages.zero.evaluation.max_problems=2",
        "stages.zero.evaluation.samples=1", "stages.score.evaluation.max_problems=2", "stages.score.evaluation.samples=1",
        "rollout.max_tokens=8", "parallel=single")
LIMIT_S = 300.0


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    said: str  # standard error and output
    seconds: float
    folder: Path  # its run folder

    @property
    def line(self) -> str:
        """What r1mega itself said at the end, or the last line of whatever was said."""
        lines = [line for line in self.said.splitlines() if line.strip()]
        return next((line for line in reversed(lines) if line.startswith("r1mega: ")), lines[-1] if lines else "")


class SkipCaseError(Exception):
    """This machine cannot try the case; says why."""


@dataclass
class Place:
    """Where a case is tried: its own folder, and a finished tiny base stage to start from."""

    folder: Path
    base: Path

    def run(self, *arguments: str, plugins: Path | None = None, output: Path | None = None) -> Outcome:
        """The command line `r1mega run recipe=r1_zero_tiny` with these arguments."""
        output = output or self.folder / "run"
        path = os.pathsep.join(filter(None, (str(plugins) if plugins else "", os.environ.get("PYTHONPATH", ""))))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        began = time.monotonic()
        command = [sys.executable, "-m", "r1mega", "run", "recipe=r1_zero_tiny", f"output_dir={output}", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, cwd=self.folder)
        return Outcome(done.returncode, done.stdout + done.stderr, time.monotonic() - began, output)

    def rl(self, *arguments: str) -> Outcome:
        """The RL stage of a tiny run whose base is finished, with the fault rewards installed."""
        shutil.copytree(self.base, self.folder / "run", symlinks=True)
        return self.run(*TINY, *arguments, plugins=FAULT_REWARDS)

    def problems(self, name: str, *lines: str) -> Path:
        """A JSONL file."""
        path = self.folder / name
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path


@dataclass(frozen=True)
class Case:
    """One bad input: how it is tried, how it must end, and what the message must name."""

    name: str
    attempt: Callable[[Place], Outcome]
    code: int
    names: tuple[str, ...]  # the key, file or line, and the way out


def make_base(folder: Path) -> Path:
    """A run folder whose tiny base stage is done."""
    outcome = Place(folder, folder).run(*TINY, "--only", "base", output=folder / "base")
    if outcome.code:
        raise SystemExit(f"the tiny base stage failed: {outcome.said[-2000:]}")
    return folder / "base"


def dry(*arguments: str) -> Callable[[Place], Outcome]:
    return lambda place: place.run("--dry-run", *arguments)


def malformed(place: Place) -> Outcome:
    good = json.dumps({"question": "2+2?", "answer": "4"})
    path = place.problems("problems.jsonl", *[good.replace("2+2", f"{n}+2") for n in range(20)], '{"question": "3+3?", "answer": ', good)
    return place.run(*TINY, "task=jsonl", f"task.path={path}")


def missing_field(place: Place) -> Outcome:
    path = place.problems("problems.jsonl", *[json.dumps({"question": f"{n}+2?", "anwser": "4"}) for n in range(3)])
    return place.run(*TINY, "task=jsonl", f"task.path={path}")


def broken_plugin(place: Place) -> Outcome:
    about = place.folder / "plugins" / "halfbaked-0.3.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: halfbaked\nVersion: 0.3\n")
    (about / "entry_points.txt").write_text("[r1mega]\nhalfbaked = halfbaked\n")
    (about.parent / "halfbaked.py").write_text("import a_package_that_is_not_there\n")
    return place.run("--dry-run", plugins=about.parent)


def faulty(how: str, on_failure: str, *more: str) -> Callable[[Place], Outcome]:
    term = f"+stages.zero.reward.terms.judge={{name: faulty, settings: {{{', '.join((f'how: {how}', *more))}}}}}"
    masks = on_failure == "mask"  # then the samples that share a call with a bad one get a second one
    settings = {"on_failure": on_failure, "timeout_s": 1, "retries": int(masks), "max_failure_rate": 1.0 if masks else 0.25}
    return lambda place: place.rl(term, "stages.zero.parallel=dp2", *[f"stages.zero.reward.{name}={value}" for name, value in settings.items()])


def too_many_failures(place: Place) -> Outcome:
    return place.rl("+stages.zero.reward.terms.judge={name: faulty, settings: {how: raise}}", "stages.zero.reward.retries=0")


def port_in_use(place: Place) -> Outcome:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        return place.run(*TINY, f"cluster.master_port={taken.getsockname()[1]}")


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, mounted for the block."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        raise SkipCaseError(f"this user cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def full_disk(place: Place) -> Outcome:
    with small_disk(place.folder / "disk", "size=4m") as disk:
        return place.run(*TINY, output=disk / "run")


def read_only(place: Place) -> Outcome:
    if os.geteuid():
        place.folder.joinpath("locked").mkdir(mode=0o555)
        return place.run(*TINY, output=place.folder / "locked" / "run")
    with small_disk(place.folder / "disk", "size=1m,ro") as disk:
        return place.run(*TINY, output=disk / "run")


CASES = (
    Case("misspelt key", dry("stages.zero.prompts_per_rolout=8"), 2, ("prompts_per_rolout", "Did you mean 'prompts_per_rollout'?")),
    Case("misspelt key, every stage", dry("parallel.tensor_model_paralel_size=2"), 2, ("Did you mean 'parallel.tensor_model_parallel_size'?",)),
    Case("misspelt stage", dry("stages.zeros.steps=8"), 2, ("zeros", "zero")),
    Case("wrong type", dry("stages.zero.steps=many"), 2, ("stages.zero.steps", "expected int", "'many'")),
    Case("wrong choice", dry("stages.zero.reward.on_failure=ignore"), 2, ("reward.on_failure", "mask", "stop")),
    Case("impossible value", dry("stages.zero.prompts_per_rollout=7"), 2, ("prompts_per_rollout=7", "data_parallel_size=2")),
    Case("TP does not divide heads", dry("parallel.tensor_model_parallel_size=3"), 2,
         ("tensor_model_parallel_size=3", "num_attention_heads (4)", "[1, 2")),
    Case("EP does not divide experts", dry("parallel.expert_model_parallel_size=3", "parallel.data_parallel_size=3"), 2,
         ("expert_model_parallel_size=3", "num_moe_experts (8)")),
    Case("world size fits no layout", dry("cluster.nodes=3", "cluster.ranks_per_node=1"), 2, ("cluster.nodes=3", "data_parallel_size")),
    Case("missing file", dry("task=gsm8k", "task.path=/nowhere/gsm8k"), 2, ("task.path", "/nowhere/gsm8k", "no such file")),
    Case("no path at all", lambda place: place.run(*TINY, "task=gsm8k"), 2, ("task.path",)),
    Case("malformed line", malformed, 2, ("problems.jsonl:21", "not valid JSON", "column")),
    Case("line without the field", missing_field, 2, ("problems.jsonl:1", "answer", "Did you mean 'anwser'?")),
    Case("empty dataset", lambda place: place.run(*TINY, "task=jsonl", f"task.path={place.problems('empty.jsonl')}"), 2,
         ("empty.jsonl", "no problems")),
    Case("unknown plugin", dry("task=arithmetik"), 2, ("arithmetik", "Did you mean 'arithmetic'?")),
    Case("unknown reward", dry("stages.zero.reward.terms.accuracy.name=acuracy"), 2, ("terms.accuracy.name", "Did you mean 'accuracy'?")),
    Case("plugin raises at import", broken_plugin, 2, ("halfbaked 0.3", "a_package_that_is_not_there", "uninstall")),
    Case("reward hangs, on_failure=stop", faulty("hang", "stop"), 1, ("judge", "no result within 1 s")),
    Case("reward hangs, on_failure=mask", faulty("hang", "mask", "share: 0.3"), 0, ()),
    Case("reward returns the wrong number", faulty("count", "stop"), 1, ("judge", "scores for")),
    Case("reward returns NaN", faulty("not_a_number", "stop"), 1, ("judge", "returned the value nan")),
    Case("too many rewards fail", too_many_failures, 1, ("reward.max_failure_rate", "the reward model's server is not there")),
    Case("full disk during a save", full_disk, 2, ("the disk is full", "make room", "run again")),
    Case("read-only output folder", read_only, 2, ("output_dir=", "choose another folder")),
    Case("port in use", port_in_use, 2, ("cluster.master_port=", "in use")),
)


def main() -> None:
    wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        base = make_base(Path(temporary))
        print("| Bad input | Exit | Seconds | What it printed |\n|---|---|---|---|")
        for number, case in enumerate(case for case in CASES if not wanted or case.name in wanted):
            place = Place(Path(temporary) / str(number), base)
            place.folder.mkdir()
            try:
                outcome = case.attempt(place)
            except SkipCaseError as error:
                print(f"| {case.name} | | | not tried: {error} |", flush=True)
                continue
            line = outcome.line.replace(temporary, "").replace("|", "\\|")
            print(f"| {case.name} | {outcome.code} | {outcome.seconds:.1f} | {line} |", flush=True)


if __name__ == "__main__":
    main()
