"""Qwen3-MoE: grouped-query attention with query/key norms, softmax-routed experts in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.policy.architecture import Architecture, MoE, Rope
from r1mega.policy.hugging_face import rows
from r1mega.policy.hugging_face.family import Family, Row
from r1mega.policy.hugging_face.settings import Settings, read_common, read_grouped_query, read_rope


@dataclass(frozen=True)
class Qwen3MoEConfig:
    """Defaults are Qwen3-30B-A3B's published config.json."""

    num_layers: int = 48
    hidden_size: int = 2048
    ffn_hidden_size: int = 6144
    num_attention_heads: int = 32
    num_query_groups: int = 4
    kv_channels: int = 128
    max_position_embeddings: int = 40960
    num_moe_experts: int = 128
    moe_ffn_hidden_size: int = 768
    moe_router_topk: int = 8
    rotary_base: float = 1e6


def qwen3_moe(config: Qwen3MoEConfig) -> Architecture:
    """Qwen3-MoE: GQA with query/key norms and softmax-routed experts."""
    return Architecture(
        num_layers=config.num_layers, hidden_size=config.hidden_size, ffn_hidden_size=config.ffn_hidden_size,
        num_attention_heads=config.num_attention_heads, num_query_groups=config.num_query_groups, kv_channels=config.kv_channels,
        max_position_embeddings=config.max_position_embeddings, qk_layernorm=True, rope=Rope(rotary_base=config.rotary_base),
        moe=MoE(num_moe_experts=config.num_moe_experts, moe_ffn_hidden_size=config.moe_ffn_hidden_size, moe_router_topk=config.moe_router_topk,
                moe_router_score_function="softmax", moe_router_enable_expert_bias=False, first_dense_layers=0))


def _layer(a: Architecture, layer: int) -> tuple[Row, ...]:
    return (*rows.NORMS, *rows.GROUPED_QUERY, *rows.QK_NORM, *(rows.EXPERTS if rows.has_experts(a, layer) else rows.DENSE_MLP))


def _settings(a: Architecture) -> dict[str, Any]:
    assert a.moe is not None
    moe = a.moe
    return {**rows.grouped_query_settings(a), "use_sliding_window": False, "num_experts": moe.num_moe_experts, "num_experts_per_tok": moe.moe_router_topk,
            "moe_intermediate_size": moe.moe_ffn_hidden_size, "norm_topk_prob": not moe.moe_router_pre_softmax, "decoder_sparse_step": 1,
            "mlp_only_layers": list(range(moe.first_dense_layers)), "output_router_logits": False, "router_aux_loss_coef": 0.0}


def _refusals(a: Architecture) -> list[str]:
    found = rows.grouped_query_refusals(a) + rows.differing(a, qk_layernorm=True, add_qkv_bias=False)
    if a.moe is None:
        return [*found, "a model without experts"]
    wanted = {"moe_router_score_function": "softmax", "moe_router_enable_expert_bias": False, "moe_shared_expert_intermediate_size": None,
              "moe_router_num_groups": None, "moe_router_topk_scaling_factor": None}
    return found + [f"moe.{name}={getattr(a.moe, name)}" for name, value in wanted.items() if getattr(a.moe, name) != value]


def _read(settings: Settings) -> Architecture:
    settings.among("attention_bias", False)
    settings.among("decoder_sparse_step", 1)
    settings.among("use_qk_norm", True, None)
    settings.among("shared_expert_intermediate_size", 0, None)
    dense = settings.listed("mlp_only_layers")
    if {*dense} != {*range(len(dense))}:
        settings.refuse(f"mlp_only_layers={dense} (dense layers can only be the first ones)")
    experts = "num_experts" if settings.values.get("num_experts") is not None else "num_local_experts"  # as transformers 5 spells it
    settings.ignore("num_experts", "num_local_experts")
    moe = MoE(num_moe_experts=settings.integer(experts), moe_ffn_hidden_size=settings.integer("moe_intermediate_size"),
              moe_router_topk=settings.integer("num_experts_per_tok"), moe_router_score_function="softmax", moe_router_enable_expert_bias=False,
              moe_router_pre_softmax=not settings.boolean("norm_topk_prob", False), first_dense_layers=len(dense))
    if moe.moe_router_topk > moe.num_moe_experts:
        settings.refuse(f"num_experts_per_tok={moe.moe_router_topk} of {moe.num_moe_experts} experts")
    return Architecture(**read_common(settings), **read_grouped_query(settings), rope=read_rope(settings), qk_layernorm=True, moe=moe)


QWEN3_MOE = Family("Qwen3-MoE", "qwen3_moe", "Qwen3MoeForCausalLM", _layer, _settings, _refusals, _read)
qwen3_moe.version = "1"  # type: ignore[attr-defined]
qwen3_moe.hugging_face = (QWEN3_MOE,)  # type: ignore[attr-defined]


@hookimpl
def register_models(register: Register) -> None:
    register("qwen3_moe", qwen3_moe, config=Qwen3MoEConfig)
