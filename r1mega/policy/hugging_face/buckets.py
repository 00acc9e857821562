"""How a model's tensors travel: which rank sends which part of which tensor, in which bucket, and where it lies there. The plan alone, without data.

Every number is sent by the one rank that owns it. Tensors with the same senders share buckets, so that a bucket takes one transfer for each sender. In
a bucket of one sender the tensors travel as they are delivered; in one of several, each sender's pieces are one contiguous segment of a second buffer
and are put in place from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from r1mega.errors import R1MegaError
from r1mega.policy.hugging_face.checksum import Block
from r1mega.policy.hugging_face.mapping import Part, Ranges, Shape, Unit

_ALIGNMENT = 16  # bytes: every tensor and every segment begins at a multiple


class Owned(NamedTuple):
    """A rectangle of a unit, on the rank that owns it."""

    unit: int
    row: int
    rows: int
    column: int
    columns: int  # 1 for a vector
    dtype: torch.dtype


class Piece(NamedTuple):
    """What one rank sends of one tensor."""

    sender: int  # a global rank
    owned: int  # which of its rectangles
    source: Ranges  # rows of that rectangle, in order
    block: Block  # where they belong in the tensor and where they lie while they travel


class Slot(NamedTuple):
    """A tensor as it is delivered."""

    name: str
    shape: Shape
    dtype: torch.dtype
    start: int  # bytes

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def block(self, tensor: int) -> Block:
        """The whole tensor, in the buffer that is delivered."""
        return Block(tensor, self.dtype, 0, self.shape[0], 0, math.prod(self.shape[1:]), self.start)


@dataclass(frozen=True)
class BucketPlan:
    """One bucket."""

    slots: tuple[Slot, ...]
    bytes: int  # of the buffer that is delivered
    segments: tuple[tuple[int, int, int], ...]  # (sender, start, stop): bytes of the travelling buffer, in order
    pieces: tuple[Piece, ...]  # by sender, then by tensor
    assembled: bool  # whether what travels is another buffer than what is delivered

    @property
    def senders(self) -> tuple[int, ...]:
        return tuple(sender for sender, _, _ in self.segments)


class _Tensor(NamedTuple):
    name: str
    shape: Shape
    dtype: torch.dtype
    pieces: list[Piece]  # their blocks know neither tensor nor start yet


def plan_buckets(units: Sequence[Unit], owned: Sequence[Sequence[Owned]], dtype: torch.dtype | None, bucket_bytes: int) -> list[BucketPlan]:
    """The buckets of a model. `owned` is what each rank owns; `dtype` is sent in place of the model's own, but for units that are always float32.

    A bucket has at most `bucket_bytes`, or one tensor alone. Raises `R1MegaError` naming the first tensor of which the ranks do not own every number once.
    """
    groups: dict[tuple[int, ...], list[_Tensor]] = {}
    for tensor in _tensors(units, owned, dtype):
        groups.setdefault(tuple(sorted({piece.sender for piece in tensor.pieces})), []).append(tensor)
    plans = []
    for senders, tensors in groups.items():
        chosen: list[_Tensor] = []
        size = 0
        for tensor in tensors:
            more = _aligned(math.prod(tensor.shape) * tensor.dtype.itemsize)
            if chosen and size + more > bucket_bytes:
                plans.append(_bucket(senders, chosen))
                chosen, size = [], 0
            chosen.append(tensor)
            size += more
        plans.append(_bucket(senders, chosen))
    return plans


def _tensors(units: Sequence[Unit], owned: Sequence[Sequence[Owned]], dtype: torch.dtype | None) -> Iterator[_Tensor]:
    """The tensors of theirs in the order of the model, each with its pieces."""
    by_unit: list[list[tuple[int, int, Owned]]] = [[] for _ in units]
    for rank, rectangles in enumerate(owned):
        for number, rectangle in enumerate(rectangles):
            by_unit[rectangle.unit].append((rank, number, rectangle))
    for unit, rectangles_of_unit in zip(units, by_unit, strict=True):
        for part in unit.parts:
            sent = torch.float32 if unit.fp32 else dtype or next((rectangle.dtype for _, _, rectangle in rectangles_of_unit), torch.float32)
            pieces = [piece for rank, number, rectangle in rectangles_of_unit for piece in _piece(part, rank, number, rectangle, sent)]
            shape = (part.rows, *unit.shape[1:])
            if (there := sum(piece.block.numbers for piece in pieces)) != math.prod(shape):
                raise R1MegaError(f"{part.name}: the ranks own {there} of its {math.prod(shape)} numbers; this layout's sharding is not described as expected")
            yield _Tensor(part.name, shape, sent, pieces)


def _piece(part: Part, sender: int, number: int, rectangle: Owned, dtype: torch.dtype) -> Iterator[Piece]:
    """What a rectangle has of a part: a part's ranges ascend, so its rows there are successive rows of the part."""
    overlaps = part.overlaps(rectangle.row, rectangle.row + rectangle.rows)
    if overlaps:
        source = tuple((ours.start, ours.stop) for ours, _ in overlaps)
        row, stop = overlaps[0][1].start, overlaps[-1][1].stop
        yield Piece(sender, number, source, Block(0, dtype, row, stop - row, rectangle.column, rectangle.columns, 0))


def _bucket(senders: tuple[int, ...], tensors: Sequence[_Tensor]) -> BucketPlan:
    slots, size = [], 0
    for tensor in tensors:
        slots.append(Slot(tensor.name, tensor.shape, tensor.dtype, size))
        size += _aligned(slots[-1].bytes)
    pieces: list[Piece] = []
    segments, start = [], 0
    for sender in senders:
        begin = start
        for number, tensor in enumerate(tensors):
            for piece in tensor.pieces:
                if piece.sender == sender:
                    pieces.append(piece._replace(block=piece.block._replace(tensor=number, start=start)))
                    start += _aligned(piece.block.bytes)
        segments.append((sender, begin, start))
    whole = len(pieces) == len(slots) and len(senders) == 1
    return BucketPlan(tuple(slots), size, tuple(segments), tuple(pieces), assembled=not whole)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
