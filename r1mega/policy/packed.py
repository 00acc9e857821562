"""How a flat row of tokens reaches the attention layers: Megatron's `PackedSeqParams`, extended.

A forward pass of the policy always sees one row of T tokens ([T, 1, h] inside Megatron), whatever sequences it is made of. These objects travel
as `packed_seq_params` through every layer to the core attention, which is the only part that knows sequences. They survive activation
recomputation and interleaved pipelines because they are arguments, not state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from megatron.core.packed_seq_params import PackedSeqParams

if TYPE_CHECKING:
    from r1mega.policy.cache import SlotCache
    from r1mega.policy.context import ContextShare


@dataclass(frozen=True)
class Bucket:
    """Sequences of similar length, padded to a rectangle for one attention call. Padding lies behind each sequence: causal attention never sees it."""

    rows: torch.Tensor  # int64 [n, longest]: indices into the T tokens; padding repeats index 0
    count: int
    longest: int


@dataclass(frozen=True)
class PackPlan:
    """The rectangles of one row of tokens, and the way back."""

    buckets: tuple[Bucket, ...]
    inverse: torch.Tensor | None  # int64 [T]: where token t lies in the concatenated rectangles; None: the row is one full rectangle in order
    rows: torch.Tensor | None = None  # int64: the rows of all buckets, one after the other; present if `inverse` is
    padding: torch.Tensor | None = None  # int64: which of them are padding


def plan_pack(lengths: Sequence[int], device: torch.device, growth: float = 1.3) -> PackPlan:
    """Group sequences so that no rectangle is more than `growth` times longer than its shortest member.

    `lengths` (N numbers that sum to T) are the sequences in their order in the row.
    """
    if len(set(lengths)) == 1:
        rows = torch.arange(sum(lengths), device=device).view(len(lengths), lengths[0])
        return PackPlan((Bucket(rows, len(lengths), lengths[0]),), None)
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0).tolist()
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    groups: list[list[int]] = []
    for i in order:
        if not groups or lengths[i] > max(8, growth * lengths[groups[-1][0]]):
            groups.append([])
        groups[-1].append(i)
    shapes = [(len(group), lengths[group[-1]]) for group in groups]
    order = [i for group in groups for i in sorted(group)]  # inside a rectangle the sequences keep their order
    start = torch.tensor([starts[i] for i in order])
    length = torch.tensor([lengths[i] for i in order])
    widths = torch.tensor([longest for count, longest in shapes for _ in range(count)])  # of each sequence's row in its rectangle
    total = sum(count * longest for count, longest in shapes)
    sequence = torch.repeat_interleave(torch.arange(len(order)), widths, output_size=total)
    column = torch.arange(total) - (widths.cumsum(0) - widths)[sequence]
    inside = column < length[sequence]
    rows = torch.where(inside, start[sequence] + column, 0)
    inverse = torch.empty(sum(lengths), dtype=torch.int64)
    inverse[rows[inside]] = inside.nonzero()[:, 0]
    rows, padding = rows.to(device), (~inside).nonzero()[:, 0].to(device)
    parts = rows.split([count * longest for count, longest in shapes])
    buckets = tuple(Bucket(part.view(shape), *shape) for part, shape in zip(parts, shapes, strict=True))
    return PackPlan(buckets, inverse.to(device), rows, padding)


@dataclass
class PackedBatch(PackedSeqParams):
    """A training or log-prob pass over whole sequences.

    With `plan` (local layers) or `share` (context parallelism) `qkv_format` stays "sbhd": positions are applied by index and Megatron leaves
    [T, 1, ...] alone. Without (Transformer Engine layers) it is "thd" and Megatron's own packed path is taken.
    """

    positions: torch.Tensor | None = None  # int64 [T], of this rank's share where there is one
    plan: PackPlan | None = None
    share: ContextShare | None = None
    real_lengths: tuple[int, ...] = ()  # of the sequences that are not padding, the first of the row
    phase: torch.Tensor | None = None  # what the first attention layer computed of the positions, for the layers after it


@dataclass
class PrefillBatch(PackedBatch):
    """A generation pass over whole prompts: their keys and values go to `cache`, logits are wanted at `logit_rows` alone."""

    cache: SlotCache | None = None
    logit_rows: torch.Tensor | None = None  # int64 [U]: the last token of each prompt


@dataclass
class DecodeBatch(PackedBatch):
    """A generation pass over one new token per slot; `positions[b]` is its place in slot b, padding rows write to the scratch slot."""

    cache: SlotCache | None = None
    logit_rows: torch.Tensor | None = None


def packed_batch(lengths: Sequence[int], positions: torch.Tensor, *, thd: bool, share: ContextShare | None = None, real: int | None = None) -> PackedBatch:
    """`PackedBatch` for sequences of these lengths, of which the first `real` (None: all) are not padding; `thd` selects Transformer Engine's path,
    unless the row is shared."""
    bounds = torch.tensor([0, *lengths], dtype=torch.int32, device=positions.device).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    thd = thd and share is None
    return PackedBatch(qkv_format="thd" if thd else "sbhd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest,
                       positions=positions, plan=None if thd or share is not None else plan_pack(lengths, positions.device), share=share,
                       real_lengths=tuple(lengths[:real]))
