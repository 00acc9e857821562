"""A bare Megatron-Core training loop: what the train step is measured against. It knows nothing of r1mega but its CPU platform module and, if
asked for, its layer spec."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import MLATransformerConfig

from r1mega.policy.architecture import Architecture
from r1mega.policy.layers import adapt_spec
from r1mega.policy.platform import adopt_cpu_torch, building_on_cpu, get_platform, mark_parameters


class SdpaAttention(MegatronModule):
    """Causal attention over [s, b, heads, d]: Megatron's local attention has no MLA, and needs a mask of s x s."""

    def __init__(self, config: Any, *args: Any, softmax_scale: float | None = None, **kwargs: Any) -> None:
        del args, kwargs
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns [s, b, heads * d of v]."""
        del args, kwargs
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.softmax_scale)
        return out.permute(2, 0, 1, 3).flatten(2)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of the bare loop."""

    tokens: torch.Tensor  # int64 [b, s]
    labels: torch.Tensor  # int64 [b, s]
    positions: torch.Tensor  # int64 [b, s]
    mask: torch.Tensor  # float32 [b, s]: which labels count


class BareLoop:
    """Model, data-parallel wrapper, distributed optimizer, schedule."""

    def __init__(self, architecture: Architecture, vocab_size: int, *, dtype: torch.dtype, transformer_engine: bool, our_layers: bool,
                 fp8_recipe: str | None = None) -> None:
        platform = get_platform()
        self.config = _config(architecture, dtype, transformer_engine=transformer_engine, fp8_recipe=fp8_recipe)
        spec = get_gpt_decoder_block_spec(self.config, use_transformer_engine=transformer_engine, normalization="RMSNorm")
        if our_layers:
            spec = adapt_spec(spec)
        if not transformer_engine:
            for layer in spec.layer_specs:
                layer.submodules.self_attention.submodules.core_attention = SdpaAttention
        with building_on_cpu(platform):
            model = GPTModel(
                self.config, spec, vocab_size=vocab_size, max_sequence_length=architecture.max_position_embeddings,
                position_embedding_type="rope", rotary_base=architecture.rope.rotary_base, share_embeddings_and_output_weights=False)
        model = model.to(platform.device)
        if not platform.is_cuda:
            adopt_cpu_torch()
            mark_parameters(model)
        ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, overlap_grad_reduce=False, grad_reduce_in_fp32=True)
        self.model = DistributedDataParallel(self.config, ddp, model)
        self.optimizer: Any = get_megatron_optimizer(
            OptimizerConfig(optimizer="adam", lr=1e-4, weight_decay=0.1, adam_beta2=0.95, clip_grad=1.0, bf16=dtype == torch.bfloat16,
                            params_dtype=dtype, use_distributed_optimizer=True), [self.model])
        self.config.grad_scale_func = self.optimizer.scale_loss
        self.forward_backward: Any = get_forward_backward_func()

    @torch.no_grad()
    def copy_weights(self, source: torch.nn.Module) -> None:
        """Take the weights and buffers of the same names from `source`."""
        theirs = dict(source.named_parameters()) | dict(source.named_buffers())
        for name, tensor in (*self.model.module.named_parameters(), *self.model.module.named_buffers()):
            if name in theirs:
                tensor.copy_(theirs[name])
            elif isinstance(tensor, torch.nn.Parameter):
                raise KeyError(f"the other model has no parameter '{name}'")
        self.optimizer.reload_model_params()

    def train_step(self, batches: Sequence[Batch]) -> float:
        """One update; returns the mean loss."""
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        results = self.forward_backward(
            forward_step_func=_forward_step, data_iterator=iter(batches), model=[self.model], num_microbatches=len(batches),
            seq_length=max(batch.tokens.shape[1] for batch in batches), micro_batch_size=batches[0].tokens.shape[0], forward_only=False)
        self.optimizer.step()
        loss, count = torch.stack([result["loss"] for result in results]).sum(0).tolist()
        return float(loss / count)


def _forward_step(iterator: Iterator[Batch], model: Any) -> tuple[torch.Tensor, Any]:
    batch = next(iterator)
    return model(batch.tokens, batch.positions, None, labels=batch.labels), partial(_loss, batch.mask)


def _loss(mask: torch.Tensor, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    loss, count = (losses.float() * mask).sum(), mask.sum()
    return loss, count.int(), {"loss": torch.stack([loss.detach(), count])}


def _config(a: Architecture, dtype: torch.dtype, *, transformer_engine: bool, fp8_recipe: str | None) -> MLATransformerConfig:
    assert a.mla is not None
    assert a.moe is not None
    fields: dict[str, Any] = {"fp8": "e4m3", "fp8_recipe": fp8_recipe} if fp8_recipe else {}
    return MLATransformerConfig(
        num_layers=a.num_layers, hidden_size=a.hidden_size, ffn_hidden_size=a.ffn_hidden_size, num_attention_heads=a.num_attention_heads,
        qk_layernorm=a.qk_layernorm, layernorm_epsilon=a.layernorm_epsilon, normalization="RMSNorm", gated_linear_unit=True,
        activation_func=F.silu, add_bias_linear=False, attention_dropout=0.0, hidden_dropout=0.0, params_dtype=dtype,
        bf16=dtype == torch.bfloat16, calculate_per_token_loss=True, gradient_accumulation_fusion=False,
        bias_activation_fusion=transformer_engine, bias_dropout_fusion=False, masked_softmax_fusion=False,
        persist_layer_norm=transformer_engine, apply_rope_fusion=False, use_cpu_initialization=not transformer_engine,
        finalize_model_grads_func=finalize_model_grads, rope_type=a.rope.rope_type, rotary_base=a.rope.rotary_base,
        q_lora_rank=a.mla.q_lora_rank, kv_lora_rank=a.mla.kv_lora_rank, qk_head_dim=a.mla.qk_head_dim,
        qk_pos_emb_head_dim=a.mla.qk_pos_emb_head_dim, v_head_dim=a.mla.v_head_dim, kv_channels=a.mla.v_head_dim,
        num_moe_experts=a.moe.num_moe_experts, moe_ffn_hidden_size=a.moe.moe_ffn_hidden_size, moe_router_topk=a.moe.moe_router_topk,
        moe_shared_expert_intermediate_size=a.moe.moe_shared_expert_intermediate_size, moe_layer_freq=a.moe_layer_freq,
        moe_router_score_function=a.moe.moe_router_score_function, moe_router_num_groups=a.moe.moe_router_num_groups,
        moe_router_group_topk=a.moe.moe_router_group_topk, moe_router_topk_scaling_factor=a.moe.moe_router_topk_scaling_factor,
        moe_router_enable_expert_bias=a.moe.moe_router_enable_expert_bias, moe_router_bias_update_rate=0.0,
        moe_router_pre_softmax=a.moe.moe_router_pre_softmax, moe_router_dtype="fp32", moe_router_load_balancing_type="none",
        moe_token_dispatcher_type="alltoall", moe_grouped_gemm=transformer_engine, **fields)
