"""Tiny policies for the policy tests: built in this process, with norms and biases that are not all one or zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from r1mega.config import OptimizerConfig, ParallelConfig, PrecisionConfig
from r1mega.policy.architecture import MLA, Architecture, MoE, Rope
from r1mega.policy.build import TrainingTerms
from r1mega.policy.packed import packed_batch
from r1mega.policy.policy import Policy
from r1mega.rollout.batching import make_microbatch
from r1mega.types import MicroBatch, TrainSequence

VOCAB = 96
COMMON: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128,
                          "init_method_std": 0.1}


def gqa(**changes: Any) -> Architecture:
    return Architecture(**COMMON | {"num_query_groups": 2, "kv_channels": 16} | changes)


def deepseek(*, yarn: bool = False, **changes: Any) -> Architecture:
    rope = Rope("yarn", rotary_scaling_factor=4.0, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=0.8) if yarn else Rope()
    return Architecture(**COMMON | {
        "qk_layernorm": True, "rope": rope,
        "mla": MLA(kv_lora_rank=16, qk_head_dim=8, qk_pos_emb_head_dim=4, v_head_dim=12, q_lora_rank=24),
        "moe": MoE(num_moe_experts=8, moe_ffn_hidden_size=16, moe_router_topk=2, moe_shared_expert_intermediate_size=16,
                   moe_router_num_groups=4, moe_router_group_topk=1, moe_router_topk_scaling_factor=2.5)} | changes)


def build(architecture: Architecture, *, optimizer: OptimizerConfig | None = None, precision: PrecisionConfig | None = None,
          terms: TrainingTerms | None = None) -> Policy:
    policy = Policy(architecture, vocab_size=VOCAB, parallel=ParallelConfig(), precision=precision or PrecisionConfig(), seed=1,
                    optimizer=optimizer, training_steps=10, terms=terms)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in [*policy.chunks[0].named_parameters(), *policy.chunks[0].named_buffers()]:
            if tensor.dim() == 1 and tensor.is_floating_point() and "tokens_per_expert" not in name:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return policy


def sequences(*lengths: int, seed: int = 0) -> list[TrainSequence]:
    rng = np.random.default_rng(seed)
    return [TrainSequence(str(i), rng.integers(0, VOCAB, n), np.r_[np.zeros(n // 3), np.ones(n - n // 3)].astype(np.float32))
            for i, n in enumerate(lengths)]


def rows(policy: Policy, batch: MicroBatch) -> torch.Tensor:
    """The output [2 + MTP depth, T] of one pass, differentiable."""
    packed = packed_batch(batch.lengths, batch.positions, thd=False)
    found: torch.Tensor = policy.models[0](batch.tokens[None], batch.positions[None], None, labels=batch.labels[None], packed_seq_params=packed)
    return found


def batch_of(parts: Sequence[TrainSequence], pad_multiple: int = 1) -> MicroBatch:
    return make_microbatch(parts, pad_multiple)


def likelihood(logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A loss function: negative log-likelihood of the weighted tokens, less a little entropy."""
    return -(logprobs * batch.weights).sum() - 0.1 * (entropy * batch.weights).sum(), {}
