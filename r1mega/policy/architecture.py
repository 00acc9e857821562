"""What a model is made of, in Megatron-Core's terms and free of torch: model plugins return it, `build` consumes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
