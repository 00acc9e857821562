"""kill -9 of a whole run of the R1 graph at random moments: every rerun continues, and every artifact ends the same bit for bit.

    python tests/soak/kill_graph.py [--kills 20] [--seed 0] [--json] [--keep FOLDER]

The graph is recipe=r1_tiny with few steps everywhere. One run goes undisturbed. Then one run is started and killed, driver and ranks together, after a
random time; the same command is run again and killed again, and so on, until it has been killed so often as one campaign asks or is complete; a
complete run is compared and a fresh one begun. A moment is any between two seconds and a third of the whole run, so kills fall everywhere: the longer
a stage, the more of them. Each is told with its stage and what that was doing. Exit code 1 when a digest differs or a rerun fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from shortened import Run, at_work

LIMIT_S = 1800.0  # of one whole run, on a machine that does other things too
RL = ("zero", "reasoning_rl", "all_scenario_rl", "student_rl")
SHORT = (
    "recipe=r1_tiny", "task.test_per_family=6", "stages.world.samples=60", "stages.world.preferences=60", "stages.world_held_out.samples=6",
    "stages.world_held_out.preferences=6",
    *(f"stages.{node}.{setting}" for node in ("base", "student_base") for setting in ("steps=60", "documents_per_step=64", "checkpoint.every=20")),
    *(f"stages.{node}.{setting}" for node in RL for setting in (
        "steps=4", "prompts_per_rollout=4", "prompts_per_unit=1", "group_size=4", "updates_per_rollout=2", "checkpoint.every=2",
        "evaluation.max_problems=4", "evaluation.samples=2", "algorithm.kl_coefficient=0.05")),
    # within so few steps the cap on the length changes, the reward models count, and the monitor looks
    "stages.zero.max_tokens_schedule=[{from_step: 2, max_tokens: 48}]",
    *(f"+stages.all_scenario_rl.prompt_schedule.{domain}={{from_step: 2}}" for domain in ("helpful", "safety")),
    *(f"stages.all_scenario_rl.{setting}" for setting in (
        "reward.terms.helpful.from_step=2", "reward.terms.safety.from_step=2", "monitor.every=2", "monitor.problems=2", "monitor.samples=2")),
    *(f"stages.{node}.{setting}" for node in ("cold_start_data", "sft_data") for setting in ("max_prompts=96", "prompts_per_unit=12")),
    *(f"stages.{node}.{setting}" for node in ("cold_start", "sft", "distill") for setting in ("epochs=1", "batch_size=8", "checkpoint.every=2")),
    # a model of so few steps says nothing that the world prefers: another rule judges what it says
    "+stages.helpful_data.reward.terms.variety={name: variety}",
    *(f"stages.helpful_data.{setting}" for setting in (
        "annotator.metric=variety", "annotator.better=0.01", "annotator.much_better=0.02", "max_prompts=48", "prompts_per_unit=6", "length_tolerance=0")),
    *(f"stages.reward_{kind}.{setting}" for kind in ("helpful", "safety") for setting in ("epochs=1", "batch_size=8", "checkpoint.every=2")),
)


def digests(run: Run) -> dict[str, str]:
    """`<node>.<output>` -> content digest, from the manifests of all stages."""
    found = {}
    for manifest in sorted(run.folder.glob("stages/*/current/manifest.json")):
        stage = json.loads(manifest.read_text())
        found |= {f"{stage['node']}.{output}": about["digest"] for output, about in stage["artifacts"].items()}
    return found


def finish(run: Run) -> str:
    """Run to the end; what went wrong, or nothing."""
    run.start()
    status = run.wait(LIMIT_S)
    return f"exit code {status}: {run.said.strip().splitlines()[-1:]}" if status else ""


def kill(run: Run, after: float) -> str:
    """Start, and kill everything after so many seconds; `<stage>: <what it was doing>`, or nothing when the run was complete before."""
    process = run.start()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    if process.poll() is not None:
        run.wait(LIMIT_S)
        return ""
    working = at_work(run.folder)
    run.end()
    run.wait(LIMIT_S)
    return ", ".join(f"{stage}: {what}" for stage, what in working.items()) or "between stages: none at work"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--keep", type=Path, help="an empty folder for the runs, which stay there; default: a temporary one")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        reference = Run(folder / "undisturbed", recipe=SHORT)
        began = time.monotonic()
        if problem := finish(reference):
            raise SystemExit(f"the undisturbed run: {problem}")
        length = time.monotonic() - began
        want = digests(reference)
        print(f"undisturbed: {len(want)} artifacts in {length:.0f} s", flush=True)
        done, problems, killed = 0, list[str](), list[str]()
        while done < options.kills:
            run = Run(folder / f"run{done}", recipe=SHORT)
            while done < options.kills:
                moment = generator.uniform(2.0, length / 3)
                where = kill(run, moment)
                if not where:
                    break
                done += 1
                killed.append(where)
                print(f"{done:>3}  killed after {moment:.0f} s in {where}", flush=True)
            problem = finish(run)
            got = digests(run)
            wrong = [name for name in want if got.get(name) != want[name]]
            if problem or wrong:
                problems.append(problem or f"{run.folder.name}: differing digests: {', '.join(wrong)}")
                print(f"     {problems[-1]}", flush=True)
            else:
                print(f"     {run.folder.name}: all {len(want)} digests equal", flush=True)
    stages = Counter(where.partition(":")[0] for where in killed)
    print(f"{done} kills in {len(stages)} different stages, {len(problems)} problems")
    if options.json:
        print(json.dumps({"kills": done, "stages": dict(stages.most_common()), "killed": killed, "artifacts": len(want), "problems": problems,
                          "undisturbed_s": round(length, 1)}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
