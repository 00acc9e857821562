"""The key/value cache of in-process generation: B slots, each with a length of its own.

Megatron's static context has one offset for the whole batch and its dynamic one needs CUDA kernels, hence this one. A slot holds one
sequence being generated; when it ends the slot is refilled at once. The last slot is scratch: padding rows write there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


class SlotCache:
    """Keys and values of every attention layer of this rank's pipeline stages."""

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots = slots
        self.capacity = capacity  # tokens a slot can hold
        self._keys: dict[int, torch.Tensor] = {}  # layer -> [B, heads, capacity, d]
        self._values: dict[int, torch.Tensor] = {}
        # Set before every pass:
        self.rows = 0  # decode: how many leading slots take part
        self.longest = 0  # decode: the longest of them after this token
        self.bias: torch.Tensor | None = None  # decode: [rows, 1, 1, longest], 0 where a slot has a token, -inf where not
        self.sources: torch.Tensor | None = None  # prefill: [S] which prompt fills each target slot
        self.targets: torch.Tensor | None = None  # prefill: [S]

    def _layer(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self._keys:
            self._keys[layer] = k.new_zeros(self.slots, k.shape[1], self.capacity, k.shape[2])
            self._values[layer] = v.new_zeros(self.slots, v.shape[1], self.capacity, v.shape[2])
        return self._keys[layer], self._values[layer]

    def begin_decode(self, positions: torch.Tensor, longest: int) -> None:
        """Before a decode pass over the leading `len(positions)` slots, the new token of slot b standing at `positions[b]`."""
        self.rows, self.longest = len(positions), longest
        column = torch.arange(longest, device=positions.device)
        seen = column[None] <= positions[:, None]
        self.bias = torch.zeros(seen.shape, device=positions.device).masked_fill_(~seen, float("-inf"))[:, None, None]

    def store_prompts(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Copy the prompts' keys and values [U, P, heads, d] (padded behind) to the target slots."""
        assert self.sources is not None
        assert self.targets is not None
        keys, values = self._layer(layer, k[0, :1], v[0, :1])
        length = k.shape[1]
        keys[self.targets, :, :length] = k.transpose(1, 2)[self.sources]
        values[self.targets, :, :length] = v.transpose(1, 2)[self.sources]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor, scale: float) -> torch.Tensor:
        """One decode step: store k, v [B, heads, d] at `positions`, return the attention output [B, heads of q, d of v]."""
        keys, values = self._layer(layer, k, v)
        index = torch.arange(self.rows, device=q.device)
        keys[index, :, positions] = k
        values[index, :, positions] = v
        keys, values = keys[: self.rows, :, : self.longest], values[: self.rows, :, : self.longest]
        group = q.shape[1] // k.shape[1]
        q = q.view(self.rows, k.shape[1], group, q.shape[2])  # queries that share a key head are rows of one product
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=self.bias.to(q.dtype) if self.bias is not None else None, scale=scale)
        return out.reshape(self.rows, k.shape[1] * group, -1)

    def move(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy whole slots, to bring the active ones together at the front."""
        for cache in (*self._keys.values(), *self._values.values()):
            cache[targets] = cache[sources]
