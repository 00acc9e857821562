"""Rows and settings that several families share. Names as in the published checkpoints."""

from __future__ import annotations

from typing import Any

from r1mega.policy.architecture import Architecture, Rope
from r1mega.policy.hugging_face.family import Row

# Around the layers. With tied embeddings there is no head.
EMBEDDING = Row(("embedding.word_embeddings.weight",), ("model.embed_tokens.weight",), "vocabulary")
FINAL_NORM = Row(("decoder.final_layernorm.weight",), ("model.norm.weight",))
HEAD = Row(("output_layer.weight",), ("lm_head.weight",), "vocabulary")
SCORE = Row(("reward_head.weight",), ("score.weight",))  # of a reward model

INPUT_NORM = Row(("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"), ("input_layernorm.weight",))
MLP_NORM = Row(("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"), ("post_attention_layernorm.weight",))
NORMS = (INPUT_NORM, MLP_NORM)

GROUPED_QUERY = (
    Row(("self_attention.linear_qkv.weight",), ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"), "qkv"),
    Row(("self_attention.linear_proj.weight",), ("self_attn.o_proj.weight",)),
)
QKV_BIAS = (Row(("self_attention.linear_qkv.bias",), ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"), "qkv"),)
QK_NORM = (
    Row(("self_attention.q_layernorm.weight",), ("self_attn.q_norm.weight",)),
    Row(("self_attention.k_layernorm.weight",), ("self_attn.k_norm.weight",)),
)
DENSE_MLP = (
    Row(("mlp.linear_fc1.weight",), ("mlp.gate_proj.weight", "mlp.up_proj.weight"), "stacked"),
    Row(("mlp.linear_fc2.weight",), ("mlp.down_proj.weight",)),
)
EXPERTS = (
    Row(("mlp.router.weight",), ("mlp.gate.weight",)),
    Row(("mlp.experts.experts.linear_fc1.weight",), ("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.{expert}.up_proj.weight"), "stacked"),
    Row(("mlp.experts.experts.linear_fc2.weight",), ("mlp.experts.{expert}.down_proj.weight",)),
)


def has_experts(architecture: Architecture, layer: int) -> bool:
    """Whether layer `layer` is one of experts; layers from num_layers on (multi-token prediction) are as the last."""
    return bool(architecture.moe_layer_freq[min(layer, architecture.num_layers - 1)])


def grouped_query_settings(architecture: Architecture) -> dict[str, Any]:
    """The keys of config.json that every family with grouped-query attention has."""
    a = architecture
    return {"num_key_value_heads": a.num_query_groups or a.num_attention_heads, "head_dim": head_size(a), "attention_bias": False,
            **rope_settings(a.rope)}


def head_size(architecture: Architecture) -> int:
    return architecture.kv_channels or architecture.hidden_size // architecture.num_attention_heads


def rope_settings(rope: Rope) -> dict[str, Any]:
    """The rotary embedding's keys, as releases spell them and transformers 4 and 5 both read them."""
    scaling: dict[str, Any] | None = None
    if rope.rope_type == "yarn":
        scaling = {"rope_type": "yarn", "factor": rope.rotary_scaling_factor, "original_max_position_embeddings": rope.original_max_position_embeddings,
                   "beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "mscale": rope.mscale, "mscale_all_dim": rope.mscale_all_dim}
    elif rope.llama3_scaling_factor is not None:  # Megatron-Core has the other three built in
        scaling = {"rope_type": "llama3", "factor": rope.llama3_scaling_factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 8192}
    return {"rope_theta": rope.rotary_base, "rope_scaling": scaling}


def grouped_query_refusals(architecture: Architecture, *, llama3_rope: bool = False) -> list[str]:
    """What no family with grouped-query attention and plain rotary embedding expresses."""
    a = architecture
    found = ["mla (latent attention)"] if a.mla is not None else []
    if a.rope.rope_type != "rope":
        found.append(f"rope.rope_type={a.rope.rope_type}")
    if a.rope.llama3_scaling_factor is not None and not llama3_rope:
        found.append(f"rope.llama3_scaling_factor={a.rope.llama3_scaling_factor}")
    return found


def differing(architecture: Architecture, **wanted: Any) -> list[str]:
    """`field=value` of every field of the architecture that is not as a family has it."""
    return [f"{name}={getattr(architecture, name)}" for name, value in wanted.items() if getattr(architecture, name) != value]
