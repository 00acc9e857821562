"""kill -9 at random moments of a shortened r1_zero_tiny: nothing is lost, nothing is doubled, and the end is the same bit for bit.

    python tests/soak/kill_rl.py [--kills 10] [--seed 0] [--json] [--keep FOLDER]

One run goes undisturbed. Then, once per kill, a run is started, a random process of it is killed in the phase named (a rank; in the last trial
the driver), the same command is run again until it completes, and everything it left is compared with the undisturbed run. Exit code 1 when
anything differs, a process is left, or a driver takes more than 30 s to name the dead rank.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shortened import STEPS, UPDATES_PER_ROLLOUT, Run, differences, steps_done

PHASES = ("generating", "scoring", "training", "saving", "generating", "scoring", "training", "saving", "evaluating", "base")
ENDED_WITHIN_S = 30.0
LIMIT_S = 900.0  # of one whole run, on a machine that does other things too


@dataclass
class Trial:
    """One kill and what came of it."""

    aim: str
    victim: str
    phase: str = ""  # in which the process died
    step: int = 0  # policy updates done by then
    ended_s: float = 0.0  # from the kill to the driver's end
    message: str = ""
    reruns: int = 0
    problems: list[str] = field(default_factory=list)


def undisturbed(folder: Path) -> tuple[Run, Run]:
    """(a run that has finished its base stage alone, the finished run)."""
    base = Run(folder / "base", ("--only", "base"))
    base.start()
    _completed(base)
    reference = base.copy(folder / "undisturbed")
    reference.start()
    _completed(reference)
    return base, reference


def _completed(run: Run) -> None:
    status = run.wait(LIMIT_S)
    if status:
        raise SystemExit(f"{run.folder}: an undisturbed run ended with {status}: {run.said[-2000:]}")


def trial(run: Run, reference: Run, aim: str, victim: str, generator: random.Random) -> Trial:
    """Start `run`, kill `victim` ("rank N" or "driver") in the phase `aim`, check what is left, run again until it completes, compare."""
    result = Trial(aim, victim)
    try:
        _strike(run, result, generator)
        if not result.phase:
            return result
        _aftermath(run, result)
        while True:
            run.start()
            status = run.wait(LIMIT_S)
            result.reruns += 1
            if status == 0:
                break
            if result.reruns == 3:
                result.problems.append(f"the third rerun ended with {status}: {run.said.strip().splitlines()[-1]}")
                return result
        result.problems += differences(run, reference)
    finally:
        run.end()
    return result


def _strike(run: Run, result: Trial, generator: random.Random) -> None:
    """Wait for the phase, and within it for a random step and a random moment; kill."""
    process = run.start()
    least = generator.randrange(0, STEPS, UPDATES_PER_ROLLOUT) if result.aim in ("generating", "scoring", "training", "saving") else 0
    if result.aim == "saving":
        least += UPDATES_PER_ROLLOUT
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        if run.phase() == result.aim and steps_done(run.stage("zero")) >= least and len(run.ranks()) == 2:
            time.sleep(generator.uniform(0, 0.1 if result.aim != "saving" else 0.02))
            pid = process.pid if result.victim == "driver" else run.ranks().get(int(result.victim[-1]))
            result.phase, result.step = run.phase(), steps_done(run.stage("zero"))
            if pid is not None and result.phase == result.aim:
                os.kill(pid, signal.SIGKILL)
                return
            result.phase = ""
        time.sleep(0.002)
    result.problems.append(f"the phase was never hit: {run.wait(LIMIT_S)} {run.said[-500:]}")


def _aftermath(run: Run, result: Trial) -> None:
    """The driver must end soon, name the dead rank, and leave nothing behind."""
    begin = time.monotonic()
    status = run.wait(LIMIT_S)
    while run.processes() and time.monotonic() - begin < ENDED_WITHIN_S:
        time.sleep(0.05)
    result.ended_s = round(time.monotonic() - begin, 2)
    result.message = run.said.strip().splitlines()[-1] if run.said.strip() else ""
    if left := run.processes():
        result.problems.append(f"left behind after {ENDED_WITHIN_S:g} s: {[' '.join(process.cmdline())[:80] for process in left]}")
    if result.ended_s > ENDED_WITHIN_S:
        result.problems.append(f"the driver took {result.ended_s} s to end")
    if result.victim == "driver":
        return
    if status != 1 or f"{result.victim} of 2 was killed by signal 9" not in result.message:
        result.problems.append(f"exit code {status}, and the message does not name {result.victim}: {result.message}")


def campaign(folder: Path, kills: int, seed: int, say: bool) -> list[Trial]:
    """The undisturbed run, `kills` trials that kill a rank, and one that kills the driver."""
    generator = random.Random(seed)
    base, reference = undisturbed(folder)
    aims = [PHASES[number % len(PHASES)] for number in range(kills)] + [generator.choice(("generating", "training"))]
    trials = []
    for number, aim in enumerate(aims):
        victim = "driver" if number == kills else f"rank {generator.randrange(2)}"
        run = Run(folder / f"kill{number}") if aim == "base" else base.copy(folder / f"kill{number}")
        done = trial(run, reference, aim, victim, generator)
        trials.append(done)
        if say:
            verdict = "; ".join(done.problems) or "bit-equal, nothing left behind"
            print(f"{number:>3}  {done.victim:<7}  {done.phase:<10}  step {done.step}  ended in {done.ended_s:5.2f} s  {verdict}", flush=True)
    return trials


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="how many times a rank is killed; one kill of the driver comes on top")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the ranks")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--keep", type=Path, help="an empty folder for the runs, which stay there; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        trials = campaign(folder.absolute(), options.kills, options.seed, say=True)
    failed = sum(bool(one.problems) for one in trials)
    slowest = max(one.ended_s for one in trials)
    print(f"{len(trials) - failed} of {len(trials)} kills ended bit-equal; the slowest end took {slowest} s; "
          f"phases: {', '.join(sorted({one.phase for one in trials}))}")
    if options.json:
        print(json.dumps({"kills": len(trials), "failed": failed, "slowest_end_s": slowest, "trials": [asdict(one) for one in trials]}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
