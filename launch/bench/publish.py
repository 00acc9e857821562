"""A whole pass of `publish` to every rank against a bare broadcast of the same bytes: seconds of each, on TP2 x PP2 x EP2.

    python launch/bench/publish.py [--json] [--passes 9] [--replicas 1] [--bucket-mib 256] [--layers 8] [--experts 96]

The model has Qwen3-MoE's shape with many small experts: 2,379 Hugging Face tensors by default. The reference broadcasts buffers of the same sizes as the
buckets, all from rank 0, and does nothing else. Everything runs in one job of one-thread processes (NCCL and one GPU each where there are enough, else
gloo), in turn, pass by pass; a figure is the median of its passes, `ratio` that of `publish` over that of `bare`. Before, every rank verifies one pass.
Besides:

    verified           the receiver of every rank computes all checksums again
    without_checksums  no rank computes any, to see what they cost
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

VOCAB = 4096
STAGES = TENSOR = EXPERT = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--passes", type=int, default=9, help="turns of each side; the median counts")
    parser.add_argument("--replicas", type=int, default=1, help="data-parallel replicas of four processes each")
    parser.add_argument("--bucket-mib", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=96, help="of each layer")
    given = parser.parse_args()
    if "RANK" in os.environ:
        return measure(given)
    import torch

    ranks = TENSOR * STAGES * given.replicas
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), str(Path(__file__).resolve())]
    hidden = {} if torch.cuda.device_count() >= ranks else {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*command, *sys.argv[1:]], env={**os.environ, "OMP_NUM_THREADS": "1", **hidden}, check=False).returncode


def measure(given: argparse.Namespace) -> int:
    """One rank of the job."""
    import torch
    import torch.distributed as dist
    from r1mega_plugins.models.qwen3_moe import QWEN3_MOE, Qwen3MoEConfig, qwen3_moe

    from r1mega.config import ParallelConfig, PrecisionConfig
    from r1mega.policy.hugging_face import publish
    from r1mega.policy.policy import Policy

    torch.set_num_threads(1)
    model = Qwen3MoEConfig(num_layers=given.layers, hidden_size=256, ffn_hidden_size=512, num_attention_heads=8, num_query_groups=2, kv_channels=32,
                           max_position_embeddings=512, num_moe_experts=given.experts, moe_ffn_hidden_size=64, moe_router_topk=4)
    parallel = ParallelConfig(tensor_model_parallel_size=TENSOR, pipeline_model_parallel_size=STAGES, expert_model_parallel_size=EXPERT,
                              data_parallel_size=given.replicas)
    policy = Policy(qwen3_moe(model), vocab_size=VOCAB, parallel=parallel, precision=PrecisionConfig(), seed=0)
    policy.ranks.barrier()
    began = time.perf_counter()
    publisher = publish.Publisher(policy, QWEN3_MOE, bucket_bytes=given.bucket_mib << 20)
    planned = time.perf_counter() - began
    publisher.publish(publish.Bucket.verify)
    done = publisher.publish(ignore)
    buffer = torch.zeros(max(plan.bytes for plan in publisher.plans), dtype=torch.uint8, device=policy.platform.device)

    def bare() -> None:
        for plan in publisher.plans:
            dist.broadcast(buffer[: plan.bytes], src=0)

    def without_checksums() -> None:
        with mock.patch.object(publish, "add_sums"):
            publisher.publish(ignore)

    sides: dict[str, Callable[[], Any]] = {"publish": lambda: publisher.publish(ignore), "bare": bare,
                                           "verified": lambda: publisher.publish(publish.Bucket.verify), "without_checksums": without_checksums}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(given.passes):
        for name, side in sides.items():
            seconds[name].append(timed(policy, side))
    if policy.ranks.rank == 0:
        median = {name: statistics.median(times) for name, times in seconds.items()}
        result = {"benchmark": "publish", "ratio": median["publish"] / median["bare"], "ranks": policy.ranks.world_size, "tensors": done.tensors,
                  "bytes": done.bytes, "buckets": len(publisher.plans), "median_seconds": median, "plan_seconds": planned, "seconds": seconds,
                  "load": os.getloadavg()[0], "versions": {name: version(name) for name in ("torch", "megatron-core")}}
        print(describe(result), flush=True)
        if given.json:
            print(json.dumps(result), flush=True)
    policy.ranks.barrier()
    dist.destroy_process_group()
    return 0


def ignore(bucket: Any) -> None:
    """A receiver that takes no time."""
    del bucket


def timed(policy: Any, side: Callable[[], Any]) -> float:
    """Seconds until all ranks are done."""
    import torch

    policy.ranks.barrier()
    began = time.perf_counter()
    side()
    if policy.platform.is_cuda:
        torch.cuda.synchronize()
    policy.ranks.barrier()
    return time.perf_counter() - began


def describe(result: dict[str, Any]) -> str:
    """The result in words."""
    median = result["median_seconds"]
    others = ", ".join(f"{name} {seconds:.3f} s ({seconds / median['bare']:.2f})" for name, seconds in median.items() if name not in ("publish", "bare"))
    return (f"ratio {result['ratio']:.2f}: publish {median['publish']:.3f} s, bare broadcast {median['bare']:.3f} s; {others}   {result['tensors']:,} tensors, "
            f"{result['bytes'] / 1e6:.0f} MB, {result['buckets']} buckets, {result['ranks']} ranks   plan "
            f"{result['plan_seconds']:.2f} s   load {result['load']:.1f}")


if __name__ == "__main__":
    sys.exit(main())
