"""How full the packer's micro-batches are, how many sequences move, and how long planning takes.

    python launch/bench/packing.py [--json] [--sequences 8192 512] [--replicas 1 2 4 ...] [--bin-size 32768] [--seeds 3]

Lengths are log-normal (median 2,000 tokens, sigma 1), capped at the bin size; the 16 samples of a prompt start on one replica. The reference is
the pigeonhole bound: `ceil(total tokens / bin size)` bins, which no packer can beat and which knows neither replicas nor equal counts. `ratio`
is our fill over the fill of that bound, the worst of all rows with the first count of `--sequences`. `of reachable` compares with the bound
rounded up to equal counts over the replicas.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from r1mega.rollout.packing import plan

GROUP = 16  # samples of one prompt, born on one replica


def measure(count: int, replicas: int, bin_size: int, seed: int) -> dict[str, Any]:
    """One row: plan `count` sequences whose groups are dealt to the replicas in turn."""
    drawn = np.exp(np.random.default_rng(seed).normal(np.log(2000), 1.0, count)).astype(int)
    lengths = np.clip(drawn, 1, bin_size).tolist()
    owners = [i // GROUP % replicas for i in range(count)]
    began = time.perf_counter()
    made = plan(lengths, owners, bin_size, replicas)
    seconds = time.perf_counter() - began
    ideal = -(-sum(lengths) // bin_size)
    return {"sequences": count, "replicas": replicas, "seed": seed, "bins": made.bins, "ideal_bins": ideal, "fill": made.fill,
            "ratio": ideal / made.bins, "of_reachable": -(-ideal // replicas) * replicas / made.bins, "moved": made.moved, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--sequences", type=int, nargs="+", default=[8192, 512])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--bin-size", type=int, default=32768)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    rows = [measure(count, replicas, given.bin_size, seed)
            for count in given.sequences for replicas in given.replicas for seed in range(given.seeds)]
    print("sequences replicas seed  bins ideal   fill  ratio of reachable moved     ms")
    for row in rows:
        print(f"{row['sequences']:9d} {row['replicas']:8d} {row['seed']:4d} {row['bins']:5d} {row['ideal_bins']:5d} {row['fill']:6.3f} "
              f"{row['ratio']:6.3f} {row['of_reachable']:12.3f} {row['moved']:5d} {1000 * row['seconds']:6.1f}")
    first = [row for row in rows if row["sequences"] == given.sequences[0]]
    if given.json:
        print(json.dumps({"benchmark": "packing", "ratio": min(row["ratio"] for row in first), "fill": min(row["fill"] for row in first),
                          "of_reachable": min(row["of_reachable"] for row in rows), "seconds": max(row["seconds"] for row in first),
                          "rows": rows}))


if __name__ == "__main__":
    main()
