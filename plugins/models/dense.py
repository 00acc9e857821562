"""Dense decoders with grouped-query attention: the shape of Llama 3 and Qwen2.5/3 students."""

from __future__ import annotations

from dataclasses import dataclass

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.policy.architecture import Architecture, Rope


@dataclass(frozen=True)
class DenseConfig:
    """Defaults are Qwen2.5-1.5B's published config.json."""

    num_layers: int = 28
    hidden_size: int = 1536
    ffn_hidden_size: int = 8960
    num_attention_heads: int = 12
    num_query_groups: int = 2
    kv_channels: int | None = None
    max_position_embeddings: int = 32768
    qk_layernorm: bool = False
    add_qkv_bias: bool = True
    tied_embeddings: bool = True
    rotary_base: float = 1e6
    rope_scaling_factor: float | None = None  # Llama 3.1's and 3.3's: 8; None: unscaled
    layernorm_epsilon: float = 1e-6


def dense(config: DenseConfig) -> Architecture:
    """Dense decoder with grouped-query attention (Llama 3, Qwen2.5, Qwen3)."""
    return Architecture(
        num_layers=config.num_layers, hidden_size=config.hidden_size, ffn_hidden_size=config.ffn_hidden_size,
        num_attention_heads=config.num_attention_heads, num_query_groups=config.num_query_groups, kv_channels=config.kv_channels,
        max_position_embeddings=config.max_position_embeddings, qk_layernorm=config.qk_layernorm, add_qkv_bias=config.add_qkv_bias,
        tied_embeddings=config.tied_embeddings, layernorm_epsilon=config.layernorm_epsilon,
        rope=Rope(rotary_base=config.rotary_base, llama3_scaling_factor=config.rope_scaling_factor))


dense.version = "1"  # type: ignore[attr-defined]


@hookimpl
def register_models(register: Register) -> None:
    register("dense", dense, config=DenseConfig)
