"""Our train step against a bare Megatron-Core training loop: tokens per second on the same model, both with their best micro-batch.

    python launch/bench/train_step.py [--json] [--threads N] [--rounds 5] [--tokens 8192] [--rows equal natural padded]

The bare loop (`_bare.py`) is the one a Megatron-Core example has: `GPTModel` from Megatron's own layer spec, `DistributedDataParallel`, the
distributed optimizer, `get_forward_backward_func`, cross-entropy from `labels`, fixed-length [b, s] batches. It takes the CPU platform from
r1mega and brings a core attention, because Megatron's local one has no MLA; nothing else. Where our layers are not Megatron's, a second bare
loop runs with them, and the faster of the two is the reference. Rows:

    equal    the same batch for both: sequences of one length. The losses must agree, or the benchmark fails.
    natural  ours on packed sequences of log-normal lengths, the bare loop on as many tokens of fixed length
    padded   both on those log-normal sequences, the bare loop padding them to the longest; only real tokens count

All sides run in one process, in turn, several rounds; a figure is the median of its rounds, `ratio` the smaller one of `equal` and
`natural`. On a GPU the model has about a billion parameters in bf16; with Transformer Engine its layers are used by both, and there are rows in
FP8 where the chip has it. Nobody has run the GPU rows yet.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _sides import Bench


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of this one process; default: all cores")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side; the median counts")
    parser.add_argument("--tokens", type=int, help="tokens of one step; default 8,192 on a CPU, 65,536 on a GPU")
    parser.add_argument("--rows", nargs="+", choices=["equal", "natural", "padded"], default=["equal", "natural", "padded"])
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(given.threads)  # before torch is imported
    from _sides import Bench, precisions

    rows = []
    for precision in precisions():
        bench = Bench(precision, given.tokens)
        for kind in given.rows:
            rows.append(measure(bench, kind, given.rounds) | {"precision": precision.name})
            print(describe(rows[-1]), flush=True)
        bench.close()
    headline = [row["ratio"] for row in rows if row["row"] != "padded"]
    result = {"benchmark": "train_step", "ratio": min(headline, default=None), "threads": given.threads, "load": os.getloadavg()[0],
              "versions": Bench.versions(), "rows": rows}
    if given.json:
        print(json.dumps(result))
    return 0


def measure(bench: Bench, kind: str, rounds: int) -> dict[str, Any]:
    """One row: choose each side's micro-batch, then let the sides take turns."""
    sides = bench.sides(kind)
    losses = {name: side.check() for name, side in sides.items()}
    if kind == "equal":
        bench.require_equal(losses)
    for side in sides.values():
        side.choose_microbatch()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(side.timed())
    speed = {name: sides[name].tokens / statistics.median(times) for name, times in seconds.items()}
    bare = max(value for name, value in speed.items() if name != "ours")
    return {"row": kind, "model": bench.model_name, "ratio": speed["ours"] / bare, "tokens_per_s": speed, "seconds": seconds,
            "microbatch_tokens": {name: side.microbatch for name, side in sides.items()}, "losses": losses,
            "mfu": {name: bench.utilisation(value) for name, value in speed.items()} if bench.peak else None}


def describe(row: dict[str, Any]) -> str:
    """The row in one line."""
    speeds = "  ".join(f"{name} {value:,.0f}" for name, value in row["tokens_per_s"].items())
    used = "  MFU " + " ".join(f"{name} {value:.1%}" for name, value in row["mfu"].items()) if row["mfu"] else ""
    sizes = " ".join(f"{name} {value:,}" for name, value in row["microbatch_tokens"].items())
    head = f"{row['model']} {row['precision']} {row['row']:8s} ratio {row['ratio']:.3f}"
    return f"{head}   tokens/s: {speeds}{used}   micro-batch tokens: {sizes}"


if __name__ == "__main__":
    sys.exit(main())
