"""Policies and batches of the GPU tests: DeepSeek-V3's shape with sizes that tensor cores, Transformer Engine and FP8 tiles accept."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import torch

from r1mega.config import OptimizerConfig, ParallelConfig, PrecisionConfig
from r1mega.policy.architecture import MLA, Architecture, MoE
from r1mega.policy.policy import Policy
from r1mega.rollout.batching import make_microbatch
from r1mega.types import MicroBatch, TrainSequence

VOCAB = 512
ARCHITECTURE = Architecture(
    num_layers=2, hidden_size=256, ffn_hidden_size=512, num_attention_heads=4, max_position_embeddings=1024, qk_layernorm=True,
    mla=MLA(kv_lora_rank=128, qk_head_dim=64, qk_pos_emb_head_dim=64, v_head_dim=128, q_lora_rank=128),
    moe=MoE(num_moe_experts=8, moe_ffn_hidden_size=128, moe_router_topk=2, moe_shared_expert_intermediate_size=128, moe_router_num_groups=4,
            moe_router_group_topk=2, moe_router_topk_scaling_factor=2.5))
BF16 = PrecisionConfig(params_dtype="bf16")


def build(precision: PrecisionConfig = BF16, *, lr: float | None = None, seed: int = 0) -> Policy:
    """A policy of this process alone; trainable if `lr` is given. What an earlier one held on the GPU is freed first."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Policy(ARCHITECTURE, vocab_size=VOCAB, parallel=ParallelConfig(), precision=precision, seed=seed, training_steps=1000,
                  optimizer=None if lr is None else OptimizerConfig(lr=lr, weight_decay=0.0))


def batches(policy: Policy, *splits: tuple[int, ...], seed: int = 0) -> list[MicroBatch]:
    """One micro-batch for each tuple of sequence lengths, full of random tokens."""
    random = np.random.default_rng(seed)
    return [make_microbatch([TrainSequence(str(i), random.integers(0, VOCAB, n), np.ones(n, np.float32)) for i, n in enumerate(lengths)],
                            policy.pad_multiple) for lengths in splits]


def cross_entropy(logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, Any]]:
    """The plain language-model loss."""
    del entropy
    return -(logprobs * batch.weights).sum(), {}


def mean_difference(ours: torch.Tensor, theirs: torch.Tensor, batch: MicroBatch) -> float:
    """Mean |difference| of two rows of log-probs over the positions that predict something."""
    counts = batch.weights > 0
    return float((ours - theirs).abs()[counts].mean())
