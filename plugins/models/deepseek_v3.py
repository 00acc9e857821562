"""DeepSeek-V3 / R1: MLA, shared and routed experts with group-limited sigmoid routing, optional MTP."""

from __future__ import annotations

from dataclasses import dataclass

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.policy.architecture import MLA, Architecture, MoE, Rope


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


deepseek_v3.version = "1"  # type: ignore[attr-defined]


@hookimpl
def register_models(register: Register) -> None:
    register("deepseek_v3", deepseek_v3, config=DeepSeekV3Config)
