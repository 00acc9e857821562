"""Dense decoders with grouped-query attention: the shape of Llama 3 and Qwen2.5/3 students."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.policy.architecture import Architecture, Rope
from r1mega.policy.hugging_face import rows
from r1mega.policy.hugging_face.family import Family, Row
from r1mega.policy.hugging_face.settings import Settings, read_common, read_grouped_query, read_rope


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


def _layer(a: Architecture, layer: int) -> tuple[Row, ...]:
    del layer  # all are alike
    return (*rows.NORMS, *rows.GROUPED_QUERY, *(rows.QKV_BIAS if a.add_qkv_bias else ()), *(rows.QK_NORM if a.qk_layernorm else ()), *rows.DENSE_MLP)


def _llama_settings(a: Architecture) -> dict[str, Any]:
    return {**rows.grouped_query_settings(a), "mlp_bias": False, "pretraining_tp": 1}


def _qwen2_settings(a: Architecture) -> dict[str, Any]:
    """Its biases and head size are not settings."""
    given = rows.grouped_query_settings(a)
    return {name: value for name, value in given.items() if name not in ("attention_bias", "head_dim")} | {"use_sliding_window": False}


def _qwen3_settings(a: Architecture) -> dict[str, Any]:
    return {**rows.grouped_query_settings(a), "use_sliding_window": False}


def _llama_refusals(a: Architecture) -> list[str]:
    return rows.grouped_query_refusals(a, llama3_rope=True) + rows.differing(a, moe=None, qk_layernorm=False, add_qkv_bias=False)


def _qwen2_refusals(a: Architecture) -> list[str]:
    found = rows.grouped_query_refusals(a) + rows.differing(a, moe=None, qk_layernorm=False, add_qkv_bias=True)
    if rows.head_size(a) * a.num_attention_heads != a.hidden_size:
        found.append(f"kv_channels={a.kv_channels} (it is always hidden_size / num_attention_heads)")
    return found


def _qwen3_refusals(a: Architecture) -> list[str]:
    return rows.grouped_query_refusals(a) + rows.differing(a, moe=None, qk_layernorm=True, add_qkv_bias=False)


def _read_llama(settings: Settings) -> Architecture:
    settings.among("attention_bias", False)
    settings.among("mlp_bias", False)
    return Architecture(**read_common(settings), **read_grouped_query(settings), rope=read_rope(settings, llama3=True))


def _read_qwen2(settings: Settings) -> Architecture:
    return Architecture(**read_common(settings), **read_grouped_query(settings), rope=read_rope(settings), add_qkv_bias=True)


def _read_qwen3(settings: Settings) -> Architecture:
    settings.among("attention_bias", False)
    return Architecture(**read_common(settings), **read_grouped_query(settings), rope=read_rope(settings), qk_layernorm=True)


LLAMA = Family("Llama 3", "llama", "LlamaForCausalLM", _layer, _llama_settings, _llama_refusals, _read_llama)
QWEN2 = Family("Qwen2", "qwen2", "Qwen2ForCausalLM", _layer, _qwen2_settings, _qwen2_refusals, _read_qwen2)  # Qwen2.5 too
QWEN3 = Family("Qwen3", "qwen3", "Qwen3ForCausalLM", _layer, _qwen3_settings, _qwen3_refusals, _read_qwen3)
dense.version = "1"  # type: ignore[attr-defined]
dense.hugging_face = (LLAMA, QWEN2, QWEN3)  # type: ignore[attr-defined]


@hookimpl
def register_models(register: Register) -> None:
    register("dense", dense, config=DenseConfig)
