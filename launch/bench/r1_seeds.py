"""The whole tiny recipe over several seeds: every effect it promises, with intervals, its time and its memory.

    python launch/bench/r1_seeds.py [--seeds 0,1,2] [--keep FOLDER] [--json] [-- overrides]
    python launch/bench/r1_seeds.py --check RUN_DIR [RUN_DIR ...]

Each run is the command a user types, in a fresh folder; with `--keep` the folders FOLDER/seed_N stay, and what is done there is not done again (the time
of a continued run is that of its stages). `--check` runs nothing and judges finished runs.

Accuracies come from the evaluations' `report.json`, problem by problem; every row of the rejection-sampled set is judged again. Which claims there are
and how the intervals are made stands in `_r1_claims.py`. Memory is the sum of the resident sets of the driver, the ranks and the reward workers (shared
pages count once a process), looked at twice a second. Exit code 1 when a claim fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import _r1_runs as runs
from _r1_claims import Line, figures, judge, passed
from _r1_runs import Result
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

RECIPE = "r1_tiny"


def measure(seeds: Sequence[int], keep: Path, overrides: Sequence[str]) -> list[Result]:
    """Run every seed in `keep`/seed_N and read what it found."""
    return [runs.read(folder, runs.run(RECIPE, seed, folder, overrides)) for seed in seeds for folder in [keep / f"seed_{seed}"]]


def show(lines: Sequence[Line], console: Console) -> None:
    """One line per claim and seed, and one for all seeds where they are pooled."""
    table = Table("claim", "seed", "found", "wanted", "", box=box.SIMPLE_HEAD)
    for number, line in enumerate(lines):
        verdict = "not measured" if line.ok is None else "yes" if line.ok else "NO" if line.counts else "no"
        style = "yellow" if line.ok is None else "dim" if not line.counts else "green" if line.ok else "bold red"
        first = number == 0 or lines[number - 1].claim != line.claim
        table.add_row(line.claim if first else "", "all" if line.seed is None else str(line.seed), Text(line.found), line.wanted, Text(verdict, style))
    console.print(table)
    console.print("[dim]found: mean [95% interval over problems]; a bound is judged on all seeds together, single seeds are shown for information[/dim]")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 when every claim holds, 1 when one does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas (default: 0,1,2)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the run folders here, and continue those that are there")
    parser.add_argument("--check", type=Path, nargs="+", metavar="RUN_DIR", help="judge these finished runs, one of each seed, and run nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides")
    arguments = parser.parse_args(argv)
    if arguments.check:
        results = [runs.read(folder) for folder in arguments.check]
        if len({result.seed for result in results}) < len(results):
            parser.error("--check wants one run of each seed; two of these have the same")
    else:
        with tempfile.TemporaryDirectory(prefix="r1mega-seeds-") as scratch:
            seeds = [int(seed) for seed in arguments.seeds.split(",")]
            results = measure(seeds, (arguments.keep or Path(scratch)).absolute(), arguments.overrides)
    lines = judge(results)
    show(lines, Console(width=None if sys.stdout.isatty() else 150))
    if arguments.json:
        print(json.dumps({"passed": passed(lines), "claims": [vars(line) for line in lines], "runs": [figures(result) for result in results]}))
    return 0 if passed(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
