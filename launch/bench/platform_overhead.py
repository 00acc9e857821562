"""How much of a train step the CPU platform's own Python functions take (`r1mega/policy/platform.py`), by cProfile.

    python launch/bench/platform_overhead.py [--steps 5] [--json]

The model is the tiny DeepSeek-V3 shape on two micro-batches of short sequences, where Python overhead weighs most. The share is the time
spent in the platform's functions themselves (the real work they call is not theirs) divided by the time of the whole step. One thread; needs
a machine without CUDA.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import sys

import numpy as np
import torch

from r1mega.config import OptimizerConfig, ParallelConfig, PrecisionConfig
from r1mega.policy.architecture import MLA, Architecture, MoE
from r1mega.policy.policy import Policy
from r1mega.rollout.batching import make_microbatch
from r1mega.types import MicroBatch, TrainSequence

ARCHITECTURE = Architecture(
    num_layers=4, hidden_size=128, ffn_hidden_size=256, num_attention_heads=4, max_position_embeddings=512, qk_layernorm=True,
    mla=MLA(kv_lora_rank=32, qk_head_dim=16, qk_pos_emb_head_dim=16, v_head_dim=32, q_lora_rank=64),
    moe=MoE(num_moe_experts=8, moe_ffn_hidden_size=64, moe_router_topk=2, moe_shared_expert_intermediate_size=64))


def likelihood(logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    del entropy
    return -(logprobs * batch.weights).sum(), {}


def measure(steps: int) -> dict[str, float]:
    """Seconds of `steps` train steps under the profiler, those in the platform's functions, their calls and their share."""
    policy = Policy(ARCHITECTURE, vocab_size=100, parallel=ParallelConfig(), precision=PrecisionConfig(), seed=0, optimizer=OptimizerConfig(),
                    training_steps=steps + 2)
    rng = np.random.default_rng(0)
    parts = [TrainSequence(str(i), rng.integers(0, 100, n), np.ones(n, np.float32)) for i, n in enumerate(rng.integers(8, 40, 16))]
    batches = [make_microbatch(parts[i::2], policy.pad_multiple) for i in range(2)]
    for _ in range(2):
        policy.train_step(batches, likelihood)
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(steps):
        policy.train_step(batches, likelihood)
    profile.disable()
    stats = pstats.Stats(profile)
    ours = [row for (file, _, _), row in stats.stats.items() if file.endswith(os.path.join("r1mega", "policy", "platform.py"))]  # type: ignore[attr-defined]
    total, own = stats.total_tt, sum(row[2] for row in ours)  # type: ignore[attr-defined]
    return {"steps": steps, "seconds": total, "platform_seconds": own, "calls": sum(row[1] for row in ours), "share": own / total}


def main() -> int:
    parser = argparse.ArgumentParser(description="The CPU platform's share of a train step.")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args()
    if torch.cuda.is_available():
        print("platform_overhead: this machine has a GPU; the CPU platform is not used here", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    figures = measure(arguments.steps)
    print(json.dumps(figures) if arguments.json else f"{figures['share']:.2%} of a train step: {figures['platform_seconds'] * 1e3:.2f} ms in "
          f"{figures['calls']:.0f} calls, of {figures['seconds'] * 1e3:.0f} ms in {arguments.steps} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
