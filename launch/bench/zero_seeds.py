"""The tiny R1-Zero recipe over several seeds: held-out accuracy before and after, wall time, peak memory of all its processes.

    python launch/bench/zero_seeds.py [--seeds 0 1 2] [--json] [-- overrides]

Each run is the command a user types, in a fresh folder. Memory is the sum of the resident sets of the driver, the ranks and the reward workers
(shared pages count once a process), sampled twice a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil


def run(seed: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    """One run of the recipe; its figures."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "r1mega", "run", "recipe=r1_zero_tiny", f"seed={seed}", f"output_dir={folder}", *overrides],
                               stdout=sys.stderr)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"seed {seed}: the run ended with exit code {process.returncode}")
    seconds = time.perf_counter() - began
    zero = json.loads((folder / "summary.json").read_text())["stages"]["zero"]["metrics"]
    return {"seed": seed, "before": zero["pass_at_1_before"], "after": zero["pass_at_1"], "ci95": zero["pass_at_1_ci95"], "problems": zero["problems"],
            "seconds": round(seconds, 1), "peak_gib": round(peak / 2**30, 2)}


def _memory(pid: int) -> int:
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        return total
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory(prefix="r1mega-seeds-") as folder:
            rows.append(run(seed, arguments.overrides, Path(folder) / "run"))
        row = rows[-1]
        print(f"seed {seed}: pass@1 {row['before']:.3f} -> {row['after']:.3f} on {row['problems']} unseen problems, {row['seconds']:.0f} s, "
              f"{row['peak_gib']:.2f} GiB", flush=True)
    if arguments.json:
        print(json.dumps({"runs": rows, "median_seconds": statistics.median(row["seconds"] for row in rows),
                          "worst_before": max(row["before"] for row in rows), "worst_after": min(row["after"] for row in rows)}))


if __name__ == "__main__":
    main()
