"""Qwen3: grouped-query attention with norms on queries and keys, and a head size of its own."""

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
class Qwen3Config(GroupedQueryConfig):
    """Defaults are Qwen3-1.7B's published config.json."""

    num_layers: int = 28
    hidden_size: int = 2048
    ffn_hidden_size: int = 6144
    num_attention_heads: int = 16
    num_query_groups: int = 8
    max_position_embeddings: int = 40960
    rotary_base: float = 1e6
    layernorm_epsilon: float = 1e-6
    tied_embeddings: bool = True
    kv_channels: int | None = 128


def qwen3(config: Qwen3Config) -> Architecture:
    """Qwen3: dense, grouped-query attention with query and key norms."""
    return decoder(config, qk_layernorm=True)


def _layer(a: Architecture, layer: int) -> tuple[Row, ...]:
    del a, layer  # all are alike
    return (*rows.NORMS, *rows.GROUPED_QUERY, *rows.QK_NORM, *rows.DENSE_MLP)


def _settings(a: Architecture) -> dict[str, Any]:
    return {**rows.grouped_query_settings(a), "use_sliding_window": False}


def _refusals(a: Architecture) -> list[str]:
    return rows.grouped_query_refusals(a) + rows.differing(a, moe=None, qk_layernorm=True, add_qkv_bias=False)


def _read(settings: Settings) -> Architecture:
    settings.among("attention_bias", False)
    return Architecture(**read_common(settings), **read_grouped_query(settings), rope=read_rope(settings), qk_layernorm=True)


QWEN3 = Family("Qwen3", "qwen3", "Qwen3ForCausalLM", _layer, _settings, _refusals, _read)
qwen3.version = "1"  # type: ignore[attr-defined]
qwen3.hugging_face = (QWEN3,)  # type: ignore[attr-defined]


@hookimpl
def register_models(register: Register) -> None:
    register("qwen3", qwen3, config=Qwen3Config)
