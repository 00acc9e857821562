"""Llama 3, 3.1 and 3.3: grouped-query attention without biases; from 3.1 on with slow rotary frequencies stretched."""

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
class LlamaConfig(GroupedQueryConfig):
    """Defaults are Llama-3.1-8B's published config.json."""

    num_layers: int = 32
    hidden_size: int = 4096
    ffn_hidden_size: int = 14336
    num_attention_heads: int = 32
    num_query_groups: int = 8
    max_position_embeddings: int = 131072
    rotary_base: float = 500000.0
    layernorm_epsilon: float = 1e-5
    tied_embeddings: bool = False
    kv_channels: int | None = None
    rope_scaling_factor: float | None = 8.0  # of 3.1 and 3.3; None: unscaled, as 3


def llama(config: LlamaConfig) -> Architecture:
    """Llama 3, 3.1, 3.3: dense, grouped-query attention."""
    return decoder(config, llama3_scaling_factor=config.rope_scaling_factor)


def _layer(a: Architecture, layer: int) -> tuple[Row, ...]:
    del a, layer  # all are alike
    return (*rows.NORMS, *rows.GROUPED_QUERY, *rows.DENSE_MLP)


def _settings(a: Architecture) -> dict[str, Any]:
    return {**rows.grouped_query_settings(a), "mlp_bias": False, "pretraining_tp": 1}


def _refusals(a: Architecture) -> list[str]:
    return rows.grouped_query_refusals(a, llama3_rope=True) + rows.differing(a, moe=None, qk_layernorm=False, add_qkv_bias=False)


def _read(settings: Settings) -> Architecture:
    settings.among("attention_bias", False)
    settings.among("mlp_bias", False)
    return Architecture(**read_common(settings), **read_grouped_query(settings), rope=read_rope(settings, llama3=True))


LLAMA = Family("Llama 3", "llama", "LlamaForCausalLM", _layer, _settings, _refusals, _read)
llama.version = "1"  # type: ignore[attr-defined]
llama.hugging_face = (LLAMA,)  # type: ignore[attr-defined]


@hookimpl
def register_models(register: Register) -> None:
    register("llama", llama, config=LlamaConfig)
