"""The key/value cache of in-process generation: B slots, each with a length of its own.

Megatron's static context has one offset for the whole batch and its dynamic one needs CUDA kernels, hence this one. A slot holds one
sequence being generated; when it ends the slot is refilled at once. The last slot is scratch: padding rows write there.
"""

from __future__ import annotations

import torch


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
        self.sources: torch.Tensor | None = None  # prefill: [S] which prompt fills each target slot
        self.targets: torch.Tensor | None = None  # prefill: [S]
        self._positions: torch.Tensor | None = None  # decode: [rows], where the new tokens stand
        self._prepared: dict[tuple[int, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}  # decode: (key heads, type) -> places, bias

    def _layer(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self._keys:
            self._keys[layer] = k.new_zeros(self.slots, k.shape[1], self.capacity, k.shape[2])
            self._values[layer] = v.new_zeros(self.slots, v.shape[1], self.capacity, v.shape[2])
        return self._keys[layer], self._values[layer]

    def begin_decode(self, positions: torch.Tensor, longest: int) -> None:
        """Before a decode pass over the leading `len(positions)` slots, the new token of slot b standing at `positions[b]`."""
        self.rows, self.longest, self._positions = len(positions), longest, positions
        self._prepared = {}

    def _prepare(self, heads: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for all layers of a pass: the flat places of the new keys [rows * heads], and the bias [rows * heads, 1, longest] that is 0
        where a slot has a token and -inf where not."""
        if (heads, dtype) not in self._prepared:
            positions = self._positions
            assert positions is not None
            slot_heads = torch.arange(self.rows * heads, device=positions.device)
            of_heads = positions.repeat_interleave(heads)
            unseen = torch.arange(self.longest, device=positions.device) > of_heads[:, None]
            bias = torch.zeros(unseen.shape, dtype=dtype, device=positions.device).masked_fill_(unseen, float("-inf"))
            self._prepared[heads, dtype] = slot_heads * self.capacity + of_heads, bias[:, None]
        return self._prepared[heads, dtype]

    def store_prompts(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Copy the prompts' keys and values [U, P, heads, d] (padded behind) to the target slots."""
        assert self.sources is not None
        assert self.targets is not None
        keys, values = self._layer(layer, k[0, :1], v[0, :1])
        length = k.shape[1]
        keys[self.targets, :, :length] = k.transpose(1, 2)[self.sources]
        values[self.targets, :, :length] = v.transpose(1, 2)[self.sources]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """One decode step: store k, v [B, heads, d] of the new tokens, return the attention output [B, heads of q, d of v]."""
        keys, values = self._layer(layer, k, v)
        rows, heads = self.rows, k.shape[1]
        places, bias = self._prepare(heads, q.dtype)
        keys.view(-1, k.shape[2]).index_copy_(0, places, k.reshape(-1, k.shape[2]))
        values.view(-1, v.shape[2]).index_copy_(0, places, v.reshape(-1, v.shape[2]))
        seen_keys = keys[:rows].view(rows * heads, self.capacity, -1)[:, : self.longest]
        seen_values = values[:rows].view(rows * heads, self.capacity, -1)[:, : self.longest]
        q = q.reshape(rows * heads, q.shape[1] // heads, q.shape[2])  # queries that share a key head are rows of one product
        # For one query per slot plain products are faster on a CPU than the fused kernel, which is made for long rows.
        scores = torch.baddbmm(bias, q, seen_keys.transpose(1, 2), alpha=scale)
        out = torch.bmm(scores.softmax(-1, dtype=torch.float32).to(v.dtype), seen_values)
        return out.view(rows, -1, v.shape[2])

    def move(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy whole slots, to bring the active ones together at the front."""
        for cache in (*self._keys.values(), *self._values.values()):
            cache[targets] = cache[sources]
