"""The layers r1mega brings to Megatron's layer specs: core attention that knows packed rows and cache slots, RMSNorm, rotary by position."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer import multi_latent_attention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.multi_latent_attention import MLASelfAttention, MLASelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm

from r1mega.policy.balance import SequenceRouter
from r1mega.policy.context import context_attention
from r1mega.policy.kernels import from_rectangles, rms_normalize, to_rectangles
from r1mega.policy.latent import PackedLatentAttention
from r1mega.policy.packed import DecodeBatch, PackedBatch, PackPlan, PrefillBatch


def packed_causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: PackPlan, scale: float | None) -> torch.Tensor:
    """Causal attention inside each sequence of a packed row. q, k, v: [T, heads, d] (k and v may have fewer heads); returns [T, heads, d of v]."""
    if plan.inverse is not None:
        assert plan.rows is not None
        q, k, v = (to_rectangles(x, plan.rows, plan.inverse) for x in (q, k, v))
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    outputs = []
    sizes = [bucket.count * bucket.longest for bucket in plan.buckets]
    for bucket, *parts in zip(plan.buckets, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
        query, key, value = (x.view(bucket.count, bucket.longest, *x.shape[1:]).transpose(1, 2) for x in parts)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        outputs.append(out.transpose(1, 2).reshape(bucket.count * bucket.longest, q.shape[1], -1))
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if plan.inverse is None:
        return out
    assert plan.rows is not None
    assert plan.padding is not None
    return from_rectangles(out, plan.rows, plan.inverse, plan.padding)


class CoreAttention(MegatronModule):
    """Core attention over one row of tokens. `inner` (Transformer Engine's attention) takes the training passes where it is present."""

    inner_class: type | None = None

    def __init__(self, config: Any, layer_number: int, attn_mask_type: Any, attention_type: str, attention_dropout: float | None = None,
                 softmax_scale: float | None = None, k_channels: int | None = None, v_channels: int | None = None, **kwargs: Any) -> None:
        super().__init__(config=config)
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale
        self.inner: torch.nn.Module | None = None
        if self.inner_class is not None:
            extra = {"k_channels": k_channels, "v_channels": v_channels} if k_channels is not None else {}
            self.inner = self.inner_class(config=config, layer_number=layer_number, attn_mask_type=attn_mask_type, attention_type=attention_type,
                                          attention_dropout=attention_dropout, softmax_scale=softmax_scale, **extra, **kwargs)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None = None,
                attn_mask_type: Any = None, attention_bias: Any = None, packed_seq_params: PackedBatch | None = None, **kwargs: Any) -> torch.Tensor:
        """query, key, value: [T, 1, heads, d] or [T, heads, d]; returns [T, 1, heads * d of v]."""
        if self.inner is not None and packed_seq_params is not None and packed_seq_params.qkv_format == "thd":
            out: torch.Tensor = self.inner(query, key, value, attention_mask, attn_mask_type=attn_mask_type, attention_bias=attention_bias,
                                           packed_seq_params=packed_seq_params, **kwargs)
            return out
        assert packed_seq_params is not None, "the policy always runs on packed rows"
        query, key, value = (x.reshape(x.shape[0], *x.shape[-2:]) for x in (query, key, value))
        scale = self.softmax_scale if self.softmax_scale is not None else query.shape[-1] ** -0.5
        if isinstance(packed_seq_params, DecodeBatch):
            assert packed_seq_params.cache is not None
            out = packed_seq_params.cache.attend(self.layer_number, query, key, value, scale)
        elif packed_seq_params.share is not None:
            out = context_attention(query, key, value, packed_seq_params.share, scale)
        else:
            assert packed_seq_params.plan is not None
            out = packed_causal_attention(query, key, value, packed_seq_params.plan, scale)
            if isinstance(packed_seq_params, PrefillBatch):
                self._store(key, value, packed_seq_params)
        return out.reshape(out.shape[0], 1, -1)

    def _store(self, key: torch.Tensor, value: torch.Tensor, batch: PrefillBatch) -> None:
        assert batch.cache is not None
        assert batch.plan is not None
        (bucket,) = batch.plan.buckets  # a prefill pass is planned as one rectangle
        k, v = (x.index_select(0, bucket.rows.flatten()).view(bucket.count, bucket.longest, *x.shape[1:]) for x in (key, value))
        batch.cache.store_prompts(self.layer_number, k, v)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm in Megatron's signature; its weight takes part in the sequence-parallel gradient sum, which Megatron's wrapper refuses."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **kwargs: Any) -> None:
        del kwargs
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., h] -> [..., h]."""
        if x.device.type != "cpu" or x.dtype != self.weight.dtype or x.dtype == torch.bfloat16:
            return super().forward(x)
        return rms_normalize(x, self.weight, self.eps or 0.0)


class ReplicatedLinear(MegatronModule):
    """A linear layer whose whole weight every tensor-parallel rank holds: MLA's down projections, as Transformer Engine builds them.

    Megatron's local layers split them by column and gather the result, which under tensor parallelism loses the other ranks' part of the
    gradient of the rotary key (measured: the gradient of `linear_kv_down_proj` was off by 2% at TP2).
    """

    def __init__(self, input_size: int, output_size: int, *, config: Any, init_method: Any, **kwargs: Any) -> None:
        del kwargs
        super().__init__(config=config)
        self.weight = torch.nn.Parameter(torch.empty(output_size, input_size, dtype=config.params_dtype))
        init_method(self.weight)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[T / TP, 1, in] -> [T / TP, 1, out]."""
        return F.linear(x, self.weight), None


class PositionalRotary(torch.nn.Module):
    """Rotary embedding looked up by each token's position, in place of Megatron's, which assumes one run of positions 0, 1, 2, ...

    Megatron first asks for a length, passing `packed_seq_params`, then calls the module with it: for our batches the "length" is the positions.
    """

    def __init__(self, inner: torch.nn.Module, *, per_head: bool) -> None:
        super().__init__()
        self.inner: Any = inner
        self.per_head = per_head  # GQA applies it to [T, 1, heads, d], MLA to [T, heads, d]
        self._table: torch.Tensor | None = None
        self._mscale: float | None = None

    def get_rotary_seq_len(self, inference_context: Any, transformer: Any, transformer_input: Any, config: Any, packed_seq_params: Any = None,
                           **kwargs: Any) -> Any:
        if isinstance(packed_seq_params, PackedBatch) and packed_seq_params.qkv_format != "thd":
            return packed_seq_params
        return self.inner.get_rotary_seq_len(inference_context, transformer, transformer_input, config, packed_seq_params, **kwargs)

    def forward(self, where: Any, *args: Any, **kwargs: Any) -> Any:
        """Angles [T, 1(, 1), d], with YaRN also its scale."""
        if not isinstance(where, PackedBatch):
            return self.inner(where, *args, **kwargs)
        angles = self._angles(where)
        if not self.per_head:
            angles = angles.squeeze(1)
        return angles if self._mscale is None else (angles, self._mscale)

    def phase(self, where: PackedBatch, before: int) -> torch.Tensor:
        """e^(i angle) as complex64 [T, 1, (before + d) / 2], 1 for the first `before` coordinates. The first layer's is kept for the others."""
        if where.phase is None:
            angles = self._angles(where)[:, 0].float()
            angles = angles[..., : angles.shape[-1] // 2]  # the second half repeats the first
            turning = torch.polar(torch.full_like(angles, self._mscale or 1.0), angles)
            where.phase = torch.cat([turning.new_ones(*turning.shape[:2], before // 2), turning], dim=-1)
        return where.phase

    def _angles(self, where: PackedBatch) -> torch.Tensor:
        assert where.positions is not None
        longest = where.max_seqlen_q
        if self._table is None or self._table.shape[0] < longest:
            size = 64
            while size < longest:
                size *= 2
            table = self.inner(size, packed_seq=True)  # whole: Megatron would cut it for context parallelism
            self._table, self._mscale = table if isinstance(table, tuple) else (table, None)
            self._table = self._table.detach()
        return self._table[where.positions]  # [T, 1, 1, d]


def adapt_spec(spec: Any) -> Any:
    """A copy of a layer spec with Megatron's router, local core attention, norm and MLA down projections replaced by ours, and Transformer Engine's
    attention wrapped."""
    if spec is DotProductAttention:
        return CoreAttention
    if spec is WrappedTorchNorm:
        return RMSNorm
    if spec is TopKRouter:
        return SequenceRouter
    if spec is MLASelfAttention:
        return PackedLatentAttention
    if isinstance(spec, type) and spec.__name__ == "TEDotProductAttention":
        return type("CoreAttentionTE", (CoreAttention,), {"inner_class": spec})
    if isinstance(spec, functools.partial):
        return functools.partial(adapt_spec(spec.func), *(adapt_spec(a) for a in spec.args),
                                 **{k: adapt_spec(v) for k, v in spec.keywords.items()})
    if isinstance(spec, list | tuple):
        return type(spec)(adapt_spec(item) for item in spec)
    if isinstance(spec, MLASelfAttentionSubmodules) and spec.linear_kv_down_proj is ColumnParallelLinear:
        multi_latent_attention.Linear = ReplicatedLinear  # which classes Megatron takes there is a fixed list; its own Linear is modelopt's, or None
        q_down = ReplicatedLinear if spec.linear_q_down_proj is ColumnParallelLinear else spec.linear_q_down_proj
        spec = dataclasses.replace(spec, linear_kv_down_proj=ReplicatedLinear, linear_q_down_proj=q_down)
    if isinstance(spec, ModuleSpec) or (dataclasses.is_dataclass(spec) and not isinstance(spec, type) and "Submodules" in type(spec).__name__):
        fields = {field.name: adapt_spec(getattr(spec, field.name)) for field in dataclasses.fields(spec)}
        return dataclasses.replace(spec, **fields)
    return spec
