"""One generated token per slot through Megatron's weights with plain tensor operations.

Megatron's layers are made for long rows and for ranks that talk to each other: with one token per slot, most of the time goes into their
checks, autograd functions and token dispatch. Where no layer has to talk to another rank this module runs the same mathematics on the same
parameters (nothing is copied); prompts and everything trained keep to Megatron's layers, and a test holds both to the same log-probs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from r1mega.policy.cache import SlotCache
from r1mega.policy.layers import RMSNorm
from r1mega.policy.packed import DecodeBatch
from r1mega.policy.policy import Policy

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosine, signed sine, each [B, 1, d]


def runs_directly(policy: Policy) -> bool:
    """Whether every layer of this policy is whole on its rank and built of the layers that `DirectDecoder` knows."""
    p = policy.parallel
    whole = p.tensor_model_parallel_size == p.pipeline_model_parallel_size == p.expert_model_parallel_size == 1
    return whole and len(policy.chunks) == 1 and not policy.transformer_engine


class DirectDecoder:
    """The decode pass of a policy for which `runs_directly` holds. It refers to the parameters as they are now: make one per generation."""

    def __init__(self, policy: Policy) -> None:
        model: Any = policy.chunks[0]
        attention = _LatentAttention if policy.config.multi_latent_attention else _GroupedAttention
        self.embedding = model.embedding.word_embeddings.weight
        self.layers = [(_Norm(layer.input_layernorm), attention(layer.self_attention), _Norm(layer.pre_mlp_layernorm),
                        _Experts(layer.mlp) if hasattr(layer.mlp, "router") else _Dense(layer.mlp)) for layer in model.decoder.layers]
        self.norm = _Norm(model.decoder.final_layernorm)
        self.head = model.shared_embedding_or_output_weight() if model.share_embeddings_and_output_weights else model.output_layer.weight
        self.rotary = model.decoder.layers[0].self_attention.rotary_pos_emb if policy.config.multi_latent_attention else model.rotary_pos_emb

    def __call__(self, batch: DecodeBatch, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, V with padding] of the tokens [B] standing at `batch.positions`; their keys and values go to the cache."""
        cache = batch.cache
        assert cache is not None
        hidden = F.embedding(tokens, self.embedding)
        rotation = self._rotation(batch, hidden.dtype)
        for input_norm, attention, mlp_norm, mlp in self.layers:
            hidden = attention(hidden, input_norm(hidden), rotation, cache)
            hidden = mlp(hidden, mlp_norm(hidden))
        return F.linear(self.norm(hidden), self.head)

    def _rotation(self, batch: DecodeBatch, dtype: torch.dtype) -> Rotation:
        found = self.rotary(batch)
        angles, scale = found if isinstance(found, tuple) else (found, 1.0)
        angles = angles.flatten(1)[:, None]
        sine = angles.sin() * scale
        sine[..., : sine.shape[-1] // 2].neg_()
        return (angles.cos() * scale).to(dtype), sine.to(dtype)


class _Norm:
    """RMSNorm over the last dimension; Megatron's identity where there is none."""

    def __init__(self, module: Any) -> None:
        present = isinstance(module, RMSNorm)
        self.weight: torch.Tensor | None = module.weight if present else None
        self.eps: float = module.eps if present else 0.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.weight is None else torch.rms_norm(x, self.weight.shape, self.weight, self.eps)


def _rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotary embedding of x [B, heads, d], whose halves are the two coordinates."""
    cosine, sine = rotation
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine)


class _GroupedAttention:
    """Grouped-query attention. Megatron's fused projection lays out, per key head, its query heads, the key and the value."""

    def __init__(self, module: Any) -> None:
        self.layer, self.project = module.layer_number, module.linear_proj.weight
        self.qkv, self.bias = module.linear_qkv.weight, module.linear_qkv.bias
        self.dim, self.groups = module.hidden_size_per_attention_head, module.num_query_groups_per_partition
        self.heads = module.num_attention_heads_per_partition // self.groups  # queries of one key head
        self.scale = module.core_attention.softmax_scale or self.dim**-0.5
        self.norm_q, self.norm_k = _Norm(module.q_layernorm), _Norm(module.k_layernorm)

    def __call__(self, residual: torch.Tensor, x: torch.Tensor, rotation: Rotation, cache: SlotCache) -> torch.Tensor:
        rows = x.shape[0]
        mixed = F.linear(x, self.qkv, self.bias).view(rows, self.groups, self.heads + 2, self.dim)
        q = self.norm_q(mixed[:, :, : self.heads].reshape(rows, -1, self.dim))
        k = self.norm_k(mixed[:, :, self.heads])
        out = cache.attend(self.layer, _rotate(q, rotation), _rotate(k, rotation), mixed[:, :, self.heads + 1], self.scale)
        return torch.addmm(residual, out.view(rows, -1), self.project.t())


class _LatentAttention:
    """Multi-latent attention with the keys and values projected up before they are cached, as the prompt's are."""

    def __init__(self, module: Any) -> None:
        config = module.config
        self.layer, self.project = module.layer_number, module.linear_proj.weight
        self.content, self.place, self.value = config.qk_head_dim, config.qk_pos_emb_head_dim, config.v_head_dim
        self.heads, self.latent = module.num_attention_heads_per_partition, config.kv_lora_rank
        self.scale = module.core_attention.softmax_scale or (self.content + self.place) ** -0.5
        self.kv_down, self.kv_norm, self.kv_up = module.linear_kv_down_proj.weight, _Norm(module.kv_layernorm), module.linear_kv_up_proj.weight
        self.q_down = None
        if config.q_lora_rank is None:
            self.q_up = module.linear_q_proj.weight
        else:
            self.q_down, self.q_norm, self.q_up = module.linear_q_down_proj.weight, _Norm(module.q_layernorm), module.linear_q_up_proj.weight

    def __call__(self, residual: torch.Tensor, x: torch.Tensor, rotation: Rotation, cache: SlotCache) -> torch.Tensor:
        rows = x.shape[0]
        low = x if self.q_down is None else self.q_norm(F.linear(x, self.q_down))
        q = F.linear(low, self.q_up).view(rows, self.heads, -1)
        down = F.linear(x, self.kv_down)
        kv = F.linear(self.kv_norm(down[:, : self.latent]), self.kv_up).view(rows, self.heads, -1)
        place = torch.cat([q[..., self.content:], down[:, None, self.latent:]], dim=1)  # the position part of all queries and of the one key
        place = place.view(rows, self.heads + 1, -1, 2).transpose(2, 3).reshape(rows, self.heads + 1, -1)  # the coordinates come interleaved
        place = _rotate(place, rotation)
        q = torch.cat([q[..., : self.content], place[:, : self.heads]], dim=-1)
        k = torch.cat([kv[..., : self.content], place[:, self.heads:].expand(-1, self.heads, -1)], dim=-1)
        out = cache.attend(self.layer, q, k, kv[..., self.content:], self.scale)
        return torch.addmm(residual, out.view(rows, -1), self.project.t())


def _gated(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    gate, up = F.linear(x, weight).chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


class _Dense:
    """Gated feed-forward layer."""

    def __init__(self, module: Any) -> None:
        self.first, self.second = module.linear_fc1.weight, module.linear_fc2.weight

    def __call__(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(residual, _gated(x, self.first), self.second.t())


class _Experts:
    """Mixture of experts: Megatron's own router decides, each expert runs once over its tokens."""

    def __init__(self, module: Any) -> None:
        self.router = module.router
        self.experts = [(expert.linear_fc1.weight, expert.linear_fc2.weight) for expert in module.experts.local_experts]
        self.shared = None if module.shared_experts is None else _Dense(module.shared_experts)

    def __call__(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        probs, routed = self.router(x[:, None])
        probs, routed = probs.flatten(0, -2).t(), routed.flatten(0, -2).t()  # [experts, B]
        order = routed.nonzero()  # by expert, then by row
        rows, counts = order[:, 1], routed.sum(1).tolist()
        inner = [_gated(tokens, first) for tokens, (first, _) in zip(x[rows].split(counts), self.experts, strict=True) if len(tokens)]
        inner = (torch.cat(inner) * probs[routed][:, None]).to(x.dtype).split([count for count in counts if count])
        seconds = [second for count, (_, second) in zip(counts, self.experts, strict=True) if count]
        outputs = torch.cat([F.linear(tokens, second) for tokens, second in zip(inner, seconds, strict=True)])
        if self.shared is not None:
            residual = self.shared(residual, x)
        return residual.index_add(0, rows, outputs)
