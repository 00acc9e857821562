"""DeepSeek-V3 / R1: MLA, shared and routed experts with group-limited sigmoid routing, optional MTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.policy.architecture import MLA, Architecture, MoE, Rope
from r1mega.policy.hugging_face import rows
from r1mega.policy.hugging_face.family import Family, Row
from r1mega.policy.hugging_face.settings import Settings, read_common, read_rope


@dataclass(frozen=True)
class DeepSeekV3Config:
    """Defaults are DeepSeek-V3 671B (V3 report section 4.2; R1_RECIPE section 8)."""

    num_layers: int = 61
    hidden_size: int = 7168
    ffn_hidden_size: int = 18432
    num_attention_heads: int = 128
    max_position_embeddings: int = 163840
    q_lora_rank: int | None = 1536
    kv_lora_rank: int = 512
    qk_head_dim: int = 128
    qk_pos_emb_head_dim: int = 64
    v_head_dim: int = 128
    num_moe_experts: int = 256
    moe_ffn_hidden_size: int = 2048
    moe_shared_expert_intermediate_size: int = 2048
    moe_router_topk: int = 8
    moe_router_num_groups: int | None = 8
    moe_router_group_topk: int | None = 4
    moe_router_topk_scaling_factor: float = 2.5
    first_dense_layers: int = 3
    mtp_num_layers: int = 1
    rope_type: str = "yarn"
    init_method_std: float = 0.006


def deepseek_v3(config: DeepSeekV3Config) -> Architecture:
    """DeepSeek-V3 / R1: MLA and experts with group-limited sigmoid routing."""
    return Architecture(
        num_layers=config.num_layers, hidden_size=config.hidden_size, ffn_hidden_size=config.ffn_hidden_size,
        num_attention_heads=config.num_attention_heads, max_position_embeddings=config.max_position_embeddings, qk_layernorm=True,
        init_method_std=config.init_method_std, mtp_num_layers=config.mtp_num_layers,
        rope=Rope(rope_type="yarn" if config.rope_type == "yarn" else "rope"),
        mla=MLA(q_lora_rank=config.q_lora_rank, kv_lora_rank=config.kv_lora_rank, qk_head_dim=config.qk_head_dim,
                qk_pos_emb_head_dim=config.qk_pos_emb_head_dim, v_head_dim=config.v_head_dim),
        moe=MoE(num_moe_experts=config.num_moe_experts, moe_ffn_hidden_size=config.moe_ffn_hidden_size, moe_router_topk=config.moe_router_topk,
                moe_shared_expert_intermediate_size=config.moe_shared_expert_intermediate_size, moe_router_score_function="sigmoid",
                moe_router_num_groups=config.moe_router_num_groups, moe_router_group_topk=config.moe_router_group_topk,
                moe_router_topk_scaling_factor=config.moe_router_topk_scaling_factor, moe_router_enable_expert_bias=True,
                moe_router_pre_softmax=True, first_dense_layers=config.first_dense_layers))


QUERIES = (Row(("self_attention.linear_q_proj.weight",), ("self_attn.q_proj.weight",)),)
LOW_RANK_QUERIES = (
    Row(("self_attention.linear_q_down_proj.weight",), ("self_attn.q_a_proj.weight",)),
    Row(("self_attention.linear_q_up_proj.layer_norm_weight", "self_attention.q_layernorm.weight"), ("self_attn.q_a_layernorm.weight",)),
    Row(("self_attention.linear_q_up_proj.weight",), ("self_attn.q_b_proj.weight",)),
)
LATENT_ATTENTION = (
    Row(("self_attention.linear_kv_down_proj.weight",), ("self_attn.kv_a_proj_with_mqa.weight",)),
    Row(("self_attention.linear_kv_up_proj.layer_norm_weight", "self_attention.kv_layernorm.weight"), ("self_attn.kv_a_layernorm.weight",)),
    Row(("self_attention.linear_kv_up_proj.weight",), ("self_attn.kv_b_proj.weight",)),
    Row(("self_attention.linear_proj.weight",), ("self_attn.o_proj.weight",)),
)
MIXTURE = (
    *rows.EXPERTS,
    Row(("mlp.router.expert_bias",), ("mlp.gate.e_score_correction_bias",), fp32=True),
    Row(("mlp.shared_experts.linear_fc1.weight",), ("mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight"), "stacked"),
    Row(("mlp.shared_experts.linear_fc2.weight",), ("mlp.shared_experts.down_proj.weight",)),
)
PREDICTION = (
    Row(("enorm.weight",), ("enorm.weight",)),
    Row(("hnorm.weight",), ("hnorm.weight",)),
    Row(("eh_proj.weight",), ("eh_proj.weight",)),
    Row(("final_layernorm.weight",), ("shared_head.norm.weight",)),
)


def _layer(a: Architecture, layer: int) -> tuple[Row, ...]:
    assert a.mla is not None
    queries = LOW_RANK_QUERIES if a.mla.q_lora_rank else QUERIES
    return (*rows.NORMS, *queries, *LATENT_ATTENTION, *(MIXTURE if rows.has_experts(a, layer) else rows.DENSE_MLP))


def _settings(a: Architecture) -> dict[str, Any]:
    assert a.mla is not None
    assert a.moe is not None
    mla, moe = a.mla, a.moe
    assert moe.moe_shared_expert_intermediate_size is not None
    yarn = a.rope.rope_type == "yarn"
    return {
        # transformers takes YaRN's reach for the model's; ours may be set to less
        "max_position_embeddings": round(a.rope.rotary_scaling_factor * a.rope.original_max_position_embeddings) if yarn else a.max_position_embeddings,
        "num_key_value_heads": a.num_attention_heads, "attention_bias": False, **rows.rope_settings(a.rope),
        "q_lora_rank": mla.q_lora_rank, "kv_lora_rank": mla.kv_lora_rank, "qk_nope_head_dim": mla.qk_head_dim, "qk_rope_head_dim": mla.qk_pos_emb_head_dim,
        "v_head_dim": mla.v_head_dim, "n_routed_experts": moe.num_moe_experts, "num_experts_per_tok": moe.moe_router_topk,
        "n_shared_experts": moe.moe_shared_expert_intermediate_size // moe.moe_ffn_hidden_size, "moe_intermediate_size": moe.moe_ffn_hidden_size,
        "n_group": moe.moe_router_num_groups or 1, "topk_group": moe.moe_router_group_topk or 1, "norm_topk_prob": True, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "routed_scaling_factor": moe.moe_router_topk_scaling_factor or 1.0, "first_k_dense_replace": moe.first_dense_layers,
        "moe_layer_freq": 1, "ep_size": 1, "num_nextn_predict_layers": a.mtp_num_layers,
    }


def _refusals(a: Architecture) -> list[str]:
    found = rows.differing(a, qk_layernorm=True, add_qkv_bias=False)
    if a.rope.llama3_scaling_factor is not None:
        found.append(f"rope.llama3_scaling_factor={a.rope.llama3_scaling_factor}")
    if a.mla is None:
        found.append("attention without mla")
    if a.moe is None:
        return [*found, "a model without experts"]
    moe = a.moe
    found += [f"moe.{name}={getattr(moe, name)}" for name, value in (("moe_router_score_function", "sigmoid"), ("moe_router_enable_expert_bias", True))
              if getattr(moe, name) != value]
    shared = moe.moe_shared_expert_intermediate_size
    if not shared or shared % moe.moe_ffn_hidden_size:
        found.append(f"moe.moe_shared_expert_intermediate_size={shared}, which is no multiple of moe_ffn_hidden_size={moe.moe_ffn_hidden_size}")
    if moe.first_dense_layers >= a.num_layers:
        found.append(f"moe.first_dense_layers={moe.first_dense_layers} of {a.num_layers} layers: a model without experts")
    if moe.moe_router_num_groups and moe.moe_router_num_groups > 1 and moe.moe_router_topk // (moe.moe_router_group_topk or 1) != 2:
        # Megatron-Core ranks a group by its best topk / group_topk experts, DeepSeek's and transformers' code always by its best two
        found.append(f"moe.moe_router_topk={moe.moe_router_topk} with moe_router_group_topk={moe.moe_router_group_topk} (its groups are ranked by their best "
                     "two experts: topk must be twice group_topk)")
    return found


def _read(settings: Settings) -> Architecture:
    common, rope = read_common(settings), read_rope(settings, yarn=True)
    heads, rotary, plain = common["num_attention_heads"], settings.integer("qk_rope_head_dim"), settings.integer("qk_nope_head_dim")
    for name, *values in (("num_key_value_heads", heads, None), ("head_dim", rotary, None), ("qk_head_dim", plain + rotary, None), ("attention_bias", False),
                          ("rope_interleave", True), ("norm_topk_prob", True), ("scoring_func", "sigmoid"), ("topk_method", "noaux_tc"), ("moe_layer_freq", 1)):
        settings.among(name, *values)
    mla = MLA(kv_lora_rank=settings.integer("kv_lora_rank"), qk_head_dim=plain, qk_pos_emb_head_dim=rotary, v_head_dim=settings.integer("v_head_dim"),
              q_lora_rank=settings.optional("q_lora_rank"))
    return Architecture(**common, qk_layernorm=True, rope=rope, mla=mla, moe=_read_experts(settings), mtp_num_layers=settings.count("num_nextn_predict_layers"))


def _read_experts(settings: Settings) -> MoE:
    """One group is no grouping. Nothing here has a default: transformers' are those of the 671B model."""
    settings.ignore("num_local_experts")  # transformers 5 repeats n_routed_experts under it
    groups, size = settings.integer("n_group"), settings.integer("moe_intermediate_size")
    chosen = settings.integer("topk_group")
    return MoE(num_moe_experts=settings.integer("n_routed_experts"), moe_ffn_hidden_size=size, moe_router_topk=settings.integer("num_experts_per_tok"),
               moe_shared_expert_intermediate_size=settings.integer("n_shared_experts") * size, moe_router_score_function="sigmoid",
               moe_router_num_groups=groups if groups > 1 else None, moe_router_group_topk=chosen if groups > 1 else None,
               moe_router_topk_scaling_factor=settings.number("routed_scaling_factor"), moe_router_enable_expert_bias=True,
               moe_router_pre_softmax=True, first_dense_layers=settings.count("first_k_dense_replace", required=True))


DEEPSEEK_V3 = Family("DeepSeek-V3", "deepseek_v3", "DeepseekV3ForCausalLM", _layer, _settings, _refusals, _read, PREDICTION)
deepseek_v3.version = "1"  # type: ignore[attr-defined]
deepseek_v3.hugging_face = (DEEPSEEK_V3,)  # type: ignore[attr-defined]


@hookimpl
def register_models(register: Register) -> None:
    register("deepseek_v3", deepseek_v3, config=DeepSeekV3Config)
