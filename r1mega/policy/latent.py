"""Multi-latent attention: Megatron's, with rotary embedding and head assembly in one step for packed rows on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.multi_latent_attention import MLASelfAttention

from r1mega.policy.kernels import latent_heads
from r1mega.policy.packed import PackedBatch


class PackedLatentAttention(MLASelfAttention):
    """Parameters, names and sharding are Megatron's. Its own path is kept for generation, whose cache holds keys in Megatron's layout."""

    def get_query_key_value_tensors(self, hidden_states: torch.Tensor, key_value_states: Any = None, position_ids: Any = None,
                                    packed_seq_params: Any = None, inference_context: Any = None, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        """hidden_states [T / TP, 1, h] -> query, key, value [T, heads, d] and the two compressed tensors [T / TP, rank]."""
        c = self.config
        if not self._applies(hidden_states, packed_seq_params):
            return super().get_query_key_value_tensors(  # type: ignore[no-any-return]
                hidden_states, key_value_states, position_ids, packed_seq_params, inference_context, **kwargs)
        low = hidden_states
        if c.q_lora_rank is not None:
            low, _ = self.linear_q_down_proj(hidden_states)
        down, _ = self.linear_kv_down_proj(hidden_states)
        latent, place = torch.split(down, [c.kv_lora_rank, c.qk_pos_emb_head_dim], dim=-1)
        if c.sequence_parallel:
            place = gather_from_sequence_parallel_region(place, group=self.tp_group)
        low, latent = low.squeeze(1), latent.squeeze(1)
        if c.q_lora_rank is not None:
            low = self.q_layernorm(low)
        latent = self.kv_layernorm(latent)
        q, _ = (self.linear_q_proj if c.q_lora_rank is None else self.linear_q_up_proj)(low)
        kv, _ = self.linear_kv_up_proj(latent)
        heads = self.num_attention_heads_per_partition
        phase = self.rotary_pos_emb.phase(packed_seq_params, c.qk_head_dim)
        query, key, value = latent_heads(q.unflatten(-1, (heads, -1)), kv.unflatten(-1, (heads, -1)), place.squeeze(1), phase)
        return query, key, value, low, latent

    def _resolve_qk_norm_config(self, submodules: Any) -> dict[str, Any]:
        """The classes to build. Asked by Megatron from 0.19 on, whose own answer would normalise what uncompressed queries are projected from
        (DeepSeek's models do not); so without compression the layer spec decides, as it does in 0.16."""
        if self.config.q_lora_rank is not None:
            return super()._resolve_qk_norm_config(submodules)  # type: ignore[no-any-return, misc, unused-ignore]
        return {name: getattr(submodules, name) for name in ("linear_q_proj", "linear_kv_up_proj", "kv_layernorm")}

    def _applies(self, hidden_states: torch.Tensor, packed_seq_params: Any) -> bool:
        exact = hidden_states.dtype in (torch.float32, torch.float64)  # torch has no complex numbers of half precision
        training = type(packed_seq_params) is PackedBatch and packed_seq_params.qkv_format != "thd"
        return exact and training and hidden_states.device.type == "cpu" and not self.recompute_up_proj
