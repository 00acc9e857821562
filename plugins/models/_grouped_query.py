"""What the dense families have in common: decoders whose query heads share keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from r1mega.policy.architecture import Architecture, Rope


@dataclass(frozen=True)
class GroupedQueryConfig:
    """Sizes; a family's own config has its defaults and what only it has."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    max_position_embeddings: int
    rotary_base: float
    layernorm_epsilon: float
    tied_embeddings: bool
    kv_channels: int | None


def decoder(config: GroupedQueryConfig, *, llama3_scaling_factor: float | None = None, **parts: Any) -> Architecture:
    """A dense decoder of these sizes with a family's `parts` (query/key norms, biases)."""
    return Architecture(
        num_layers=config.num_layers, hidden_size=config.hidden_size, ffn_hidden_size=config.ffn_hidden_size,
        num_attention_heads=config.num_attention_heads, num_query_groups=config.num_query_groups, kv_channels=config.kv_channels,
        max_position_embeddings=config.max_position_embeddings, tied_embeddings=config.tied_embeddings, layernorm_epsilon=config.layernorm_epsilon,
        rope=Rope(rotary_base=config.rotary_base, llama3_scaling_factor=llama3_scaling_factor), **parts)
