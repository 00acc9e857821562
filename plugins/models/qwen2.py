"""Qwen2 and Qwen2.5, Math included: grouped-query attention with biases on queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.policy.architecture import Architecture
from r1mega.policy.hugging_face import rows
from r1mega.policy.hugging_face.family import Family, Row
from r1mega.policy.hugging_face.settings import Settings, read_common, read_grouped_query, read_rope

from ._grouped_query import GroupedQueryConfig, decoder


@dataclass(frozen=True)
class Qwen2Config(GroupedQueryConfig):
    """Defaults are Qwen2.5-1.5B's published config.json."""

    num_layers: int = 28
    hidden_size: int = 1536
    ffn_hidden_size: int = 8960
    num_attention_heads: int = 12
    num_query_groups: int = 2
    max_position_embeddings: int = 131072
    rotary_base: float = 1e6
    layernorm_epsilon: float = 1e-6
    tied_embeddings: bool = True
    kv_channels: int | None = None


def qwen2(config: Qwen2Config) -> Architecture:
    """Qwen2, Qwen2.5, Qwen2.5-Math: dense, grouped-query attention with biases."""
    return decoder(config, add_qkv_bias=True)


def _layer(a: Architecture, layer: int) -> tuple[Row, ...]:
    del a, layer  # all are alike
    return (*rows.NORMS, *rows.GROUPED_QUERY, *rows.QKV_BIAS, *rows.DENSE_MLP)


def _settings(a: Architecture) -> dict[str, Any]:
    """Its biases and head size are not settings."""
    given = rows.grouped_query_settings(a)
    return {name: value for name, value in given.items() if name not in ("attention_bias", "head_dim")} | {"use_sliding_window": False}


def _refusals(a: Architecture) -> list[str]:
    found = rows.grouped_query_refusals(a) + rows.differing(a, moe=None, qk_layernorm=False, add_qkv_bias=True)
    if rows.head_size(a) * a.num_attention_heads != a.hidden_size:
        found.append(f"kv_channels={a.kv_channels} (it is always hidden_size / num_attention_heads)")
    return found


def _read(settings: Settings) -> Architecture:
    return Architecture(**read_common(settings), **read_grouped_query(settings), rope=read_rope(settings), add_qkv_bias=True)


QWEN2 = Family("Qwen2", "qwen2", "Qwen2ForCausalLM", _layer, _settings, _refusals, _read)
qwen2.version = "1"  # type: ignore[attr-defined]
qwen2.hugging_face = (QWEN2,)  # type: ignore[attr-defined]


@hookimpl
def register_models(register: Register) -> None:
    register("qwen2", qwen2, config=Qwen2Config)
