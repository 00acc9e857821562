"""What a model is made of, in Megatron-Core's terms and free of torch: model plugins return it, `build` consumes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class MLA:
    """Multi-latent attention (DeepSeek-V2/V3). Sizes are per head unless named a rank."""

    kv_lora_rank: int
    qk_head_dim: int
    qk_pos_emb_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None  # None: queries are projected directly


@dataclass(frozen=True)
class MoE:
    """Mixture of experts with DeepSeek-V3's routing (R1_RECIPE section 8, "Gate") or softmax top-k."""

    num_moe_experts: int
    moe_ffn_hidden_size: int
    moe_router_topk: int
    moe_shared_expert_intermediate_size: int | None = None
    moe_router_score_function: Literal["sigmoid", "softmax"] = "sigmoid"
    moe_router_num_groups: int | None = None
    moe_router_group_topk: int | None = None
    moe_router_topk_scaling_factor: float | None = None
    moe_router_enable_expert_bias: bool = True
    moe_router_pre_softmax: bool = False
    first_dense_layers: int = 1


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding."""

    rope_type: Literal["rope", "yarn"] = "rope"
    rotary_base: float = 10000.0
    llama3_scaling_factor: float | None = None  # with "rope": Llama 3.1's stretch of the slow frequencies from 8,192 positions on; None: none
    rotary_scaling_factor: float = 40.0  # the rest is read with "yarn" only
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    max_position_embeddings: int
    num_query_groups: int | None = None  # GQA; None: as many as heads
    kv_channels: int | None = None  # None: hidden_size / heads
    qk_layernorm: bool = False
    add_qkv_bias: bool = False
    layernorm_epsilon: float = 1e-6
    tied_embeddings: bool = False
    init_method_std: float = 0.02
    mtp_num_layers: int = 0
    rope: Rope = Rope()
    mla: MLA | None = None
    moe: MoE | None = None

    @property
    def moe_layer_freq(self) -> list[int]:
        """Megatron's pattern: 0 for a dense layer, 1 for an expert layer."""
        dense = self.moe.first_dense_layers if self.moe else self.num_layers
        return [0] * dense + [1] * (self.num_layers - dense)

    @classmethod
    def from_dict(cls, stated: Mapping[str, Any]) -> Architecture:
        """From what `dataclasses.asdict` gave. Raises `KeyError` or `TypeError` for anything else."""
        parts = {name: kind(**stated[name]) if stated[name] is not None else None for name, kind in (("rope", Rope), ("mla", MLA), ("moe", MoE))}
        return cls(**{**stated, **parts})

    def canonical(self) -> Architecture:
        """The same model with its implied values spelled out and those that nothing reads at their defaults: equal for equal models."""
        rope = self.rope if self.rope.rope_type == "yarn" else Rope(rotary_base=self.rope.rotary_base, llama3_scaling_factor=self.rope.llama3_scaling_factor)
        moe = self.moe
        if moe is not None:
            moe = replace(moe, moe_router_topk_scaling_factor=moe.moe_router_topk_scaling_factor or 1.0,
                          moe_router_pre_softmax=moe.moe_router_pre_softmax and moe.moe_router_score_function == "softmax")
        if self.mla is not None:
            return replace(self, num_query_groups=None, kv_channels=None, rope=rope, moe=moe)
        return replace(self, num_query_groups=self.num_query_groups or self.num_attention_heads,
                       kv_channels=self.kv_channels or self.hidden_size // self.num_attention_heads, rope=rope, moe=moe)
