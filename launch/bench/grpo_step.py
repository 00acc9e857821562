"""One whole GRPO step (generate, score, train) of r1mega against TRL's GRPOTrainer: completion tokens per second on the same weights.

    python launch/bench/grpo_step.py [--json] [--modes fixed natural] [--rounds 5] [--trial 3] [--micro-batch-tokens 4096]
        [--settings "2 ranks" "1 thread, batch 256"]

256 samples (16 prompts x 16) a step, a dense Qwen3 model of 0.6 M parameters, fp32, KL coefficient 0, one update per rollout, a trivial rule reward.
`fixed`: 48 tokens each. `natural`: a constant chance to end after every token, mean 48, cap 256. The end-of-sequence chance is in the
weights, which both sides load from one file; the log-probs of a probe must agree, or the benchmark fails.

Ours is the RL stage's `Learner` (collect, minibatches, update, end_rollout): prompts from the stream, in-process generation, reward worker
processes, the ledger on disk, packing, Megatron's optimizer. It is the stage but for its checkpoints, its evaluation and its observers, none of
which TRL has here either (no saving, no logging). TRL's reward runs in its own process.

Every contestant is a process (ours: one or two ranks) with its own thread count that idles while another one works. All of a mode take
`--trial` turns, of which the first is dropped; the fastest of each side go on, in turn, `--rounds` times. A figure is the median; `ratio` is ours
over TRL's in `fixed`, `ratio_natural` in `natural`. Linux, CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
TRL = "1.16.0"


@dataclass(frozen=True)
class Child:
    """A process of a contestant, its line of replies, and where its output goes."""

    process: subprocess.Popen[bytes]
    replies: IO[str]
    log: Path

    def ask(self) -> None:
        """Ask for one step."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"step\n")
        self.process.stdin.flush()

    def reply(self) -> dict[str, Any]:
        """What it says next; a child that has ended ends the benchmark."""
        line = self.replies.readline()
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            sys.exit(f"{self.log.stem} ended with status {self.process.wait()}:\n{tail}")
        found: dict[str, Any] = json.loads(line)
        return found


@dataclass
class Contestant:
    """One way of running one side: its processes and what its steps reported."""

    name: str
    script: str
    ranks: int
    threads: int
    micro_batch: int
    children: list[Child] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def start(self, folder: Path, mode: str) -> dict[str, Any]:
        """Start the processes; what they say once they are ready."""
        port = _free_port()
        for rank in range(self.ranks):
            read, write = os.pipe()
            env = _environment(self.threads) | {"RANK": str(rank), "WORLD_SIZE": str(self.ranks), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                                                "MASTER_PORT": str(port), "GRPO_BENCH_REPLY": str(write)}
            log = folder / f"{self.name}-{mode}-{rank}.log"
            with log.open("wb") as output:
                process = subprocess.Popen([sys.executable, str(HERE / self.script), str(folder), mode, str(self.micro_batch)], env=env, pass_fds=[write],
                                           stdin=subprocess.PIPE, stdout=output, stderr=output)
            os.close(write)
            self.children.append(Child(process, os.fdopen(read), log))
        return self._replies()

    def step(self) -> float:
        """One step; its completion tokens per second."""
        for child in self.children:
            child.ask()
        self.steps.append(self._replies())
        return self.speed(self.steps[-1:])

    def _replies(self) -> dict[str, Any]:
        """What the first rank says; all have said something then."""
        first, *_ = [child.reply() for child in self.children]
        return first

    def speed(self, steps: list[dict[str, Any]]) -> float:
        """Median completion tokens per second of these steps."""
        return float(statistics.median(step["tokens"] / step["seconds"] for step in steps))

    def stop(self) -> None:
        """End the processes."""
        for child in self.children:
            if child.process.stdin is not None:
                child.process.stdin.close()
        for child in self.children:
            try:
                child.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                child.process.kill()
            child.replies.close()
        self.children = []


def contestants(micro_batch_tokens: int) -> list[Contestant]:
    """The settings worth trying on two cores."""
    cores = min(2, len(os.sched_getaffinity(0)))
    return [
        Contestant("ours, 2 ranks x 1 thread", "_grpo_ours.py", 2, 1, micro_batch_tokens),
        Contestant(f"ours, 1 rank x {cores} threads", "_grpo_ours.py", 1, cores, micro_batch_tokens),
        Contestant(f"TRL, {cores} threads, batch 256", "_grpo_trl.py", 1, cores, 256),
        Contestant(f"TRL, {cores} threads, batch 64", "_grpo_trl.py", 1, cores, 64),
        Contestant("TRL, 1 thread, batch 256", "_grpo_trl.py", 1, 1, 256),
        Contestant(f"TRL, {cores} threads, continuous batching", "_grpo_trl.py", 1, cores, -256),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--modes", nargs="+", choices=["fixed", "natural"], default=["fixed", "natural"])
    parser.add_argument("--rounds", type=int, default=5, help="counted turns of each side; the median counts")
    parser.add_argument("--trial", type=int, default=3, help="turns of every setting before the best is chosen; the first is dropped")
    parser.add_argument("--micro-batch-tokens", type=int, default=4096, help="ours: tokens of one packed micro-batch")
    parser.add_argument("--settings", nargs="+", default=[""], help="only the settings whose name contains one of these; both sides need one")
    given = parser.parse_args()
    if version("trl") != TRL:
        sys.exit(f"this benchmark is against trl {TRL}, found {version('trl')}: pip install trl=={TRL}")
    with tempfile.TemporaryDirectory(prefix="grpo-step-") as name:
        folder = Path(name)
        code = "import sys; from pathlib import Path; from _grpo_shared import prepare; prepare(Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, name], env=_environment(2), check=True)
        rows = {mode: measure(folder, mode, given) for mode in given.modes}
    result = {"benchmark": "grpo_step", "ratio": rows.get("fixed", {}).get("ratio"), "ratio_natural": rows.get("natural", {}).get("ratio"),
              "load": os.getloadavg()[0], "versions": {name: version(name) for name in ("trl", "transformers", "torch", "megatron-core")}, "rows": rows}
    if given.json:
        print(json.dumps(result))
    return 0


def measure(folder: Path, mode: str, given: argparse.Namespace) -> dict[str, Any]:
    """Choose both sides' settings, then let them take turns."""
    every = [one for one in contestants(given.micro_batch_tokens) if any(part in one.name for part in given.settings)]
    try:
        ready = {contestant.name: contestant.start(folder, mode) for contestant in every}
        probes = [report["probe"] for report in ready.values()]
        apart = max(abs(a - b) for probe in probes for a, b in zip(probe, probes[0], strict=True))
        if apart > 1e-4:
            sys.exit(f"{mode}: the sides do not hold the same model: their log-probs of the probe differ by {apart:.3g}")
        for _ in range(given.trial):
            for contestant in every:
                contestant.step()
        tried = {contestant.name: contestant.speed(contestant.steps[1:] or contestant.steps) for contestant in every}
        best = {side: max((one for one in every if one.name.startswith(side)), key=lambda one: tried[one.name]) for side in ("ours", "TRL")}
        for contestant in every:
            if contestant not in best.values():
                contestant.stop()
        for contestant in best.values():
            contestant.steps.clear()
        for _ in range(given.rounds):
            for contestant in best.values():
                contestant.step()
    finally:
        for contestant in every:
            contestant.stop()
    sides = {side: _describe(contestant) for side, contestant in best.items()}
    ratio = sides["ours"]["tokens_per_s"] / sides["TRL"]["tokens_per_s"]
    print(f"{mode}: ratio {ratio:.2f}   load {os.getloadavg()[0]:.1f}   tried: " + ", ".join(f"{name} {speed:,.0f}" for name, speed in tried.items()))
    for side in sides.values():
        print("  " + "  ".join(f"{key} {value:,.3f}" if isinstance(value, float) else str(value) for key, value in side.items() if key != "steps"), flush=True)
    return {"ratio": ratio, "probe_difference": apart, "tried": tried, **sides}


def _describe(contestant: Contestant) -> dict[str, Any]:
    steps = contestant.steps
    parts = [key for key in steps[0] if key.endswith("_seconds")]
    return {"setting": contestant.name, "tokens_per_s": contestant.speed(steps), "step_seconds": statistics.median(step["seconds"] for step in steps),
            **{key: statistics.median(step[key] for step in steps) for key in parts},
            "mean_length": sum(step["tokens"] for step in steps) / sum(step["samples"] for step in steps),
            "longest": max(step["longest"] for step in steps), "steps": steps}


def _environment(threads: int) -> dict[str, str]:
    """The children's: their own thread count, whatever the caller's, and the benchmark's reward plugin."""
    path = os.pathsep.join([str(HERE), str(HERE / "grpo_reward"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    threads_of = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {**os.environ, **threads_of, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


if __name__ == "__main__":
    sys.exit(main())
