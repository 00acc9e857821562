"""Llama 3's rotary scaling against Hugging Face transformers."""

from __future__ import annotations

import policy_models as models
import pytest
import torch

from r1mega.policy.architecture import Rope

transformers = pytest.importorskip("transformers")


def test_frequencies_are_those_of_transformers() -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    policy = models.build(models.gqa(rope=Rope(rotary_base=500000.0, llama3_scaling_factor=8.0), kv_channels=64))
    ours = policy.chunks[0].rotary_pos_emb.inner.inv_freq
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(head_dim=64, max_position_embeddings=131072, rope_theta=500000.0, rope_parameters=rope)).inv_freq
    unscaled = 500000.0 ** (-torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert (ours < 0.2 * unscaled).sum() > 5  # the slow ones are stretched by 8
    assert torch.allclose(ours[:4], unscaled[:4])  # the fast ones are not
