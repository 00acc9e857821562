"""The policy's weights handed to a generator: Hugging Face names and tensors in flat buckets, with a version and checksums.

    publisher = Publisher(policy, family)                       # once: the plan
    publisher.publish(lambda bucket: engine.load_weights(bucket.tensors))    # after each update; a collective without a generator or an iterator in it

A multi-token-prediction layer is sent; the copies of the embedding and the head that released checkpoints repeat beside it are not: their names
(`Part.copies`) stand for tensors that are sent under the names that serving engines read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist

from r1mega.errors import R1MegaError, UserError
from r1mega.policy import storage
from r1mega.policy.hugging_face.buckets import BucketPlan, Owned, Piece, Slot, plan_buckets
from r1mega.policy.hugging_face.checksum import Checksum, Run, add_sums, combined, describe, find_runs
from r1mega.policy.hugging_face.family import Family
from r1mega.policy.hugging_face.mapping import Ranges, map_tensors
from r1mega.policy.hugging_face.regions import regions
from r1mega.policy.keys import own_tensors
from r1mega.policy.policy import Policy

Named = tuple[str, torch.Tensor]


@dataclass(frozen=True)
class Bucket:
    """Some whole tensors. They are views of a buffer that the next bucket reuses: copy what is to outlast the call, and on a GPU let work that was queued
    on other streams end before it returns."""

    version: int  # of the weights
    index: int  # 0 ... count - 1
    count: int  # of the pass
    tensors: tuple[Named, ...]
    flat: torch.Tensor  # uint8: all of them, each from a multiple of 16 bytes on
    sums: torch.Tensor = field(repr=False)  # int64 [tensors, 3], as the owners of the numbers computed them before they were sent
    runs: Sequence[Run] = field(repr=False)

    @cached_property
    def checksums(self) -> Mapping[str, Checksum]:
        """What `checksum_of` gives for each tensor that is whole and of this version, by name."""
        return _checksums(self.tensors, self.sums)

    def verify(self) -> None:
        """Compute the checksums again, here. Raises `R1MegaError` naming the first tensor that is not what its owners sent, and the version."""
        found = torch.zeros_like(self.sums)
        add_sums(found, self.flat, self.runs)
        if not torch.equal(found, self.sums):
            wrong = next(name for (name, _), same in zip(self.tensors, (found == self.sums).all(1).tolist(), strict=True) if not same)
            raise R1MegaError(f"{wrong} of version {self.version} is not what was sent: its checksum is "
                              f"{tuple(_checksums(self.tensors, found)[wrong])}, that of its owners {tuple(self.checksums[wrong])}")


Receiver = Callable[[Bucket], None]


@dataclass(frozen=True)
class Published:
    """One pass; the same on every rank."""

    version: int
    tensors: int
    bytes: int  # of the tensors
    checksum: str  # `combined` of all tensors' checksums: of the content, whatever the layout and the buckets


@dataclass(frozen=True)
class _Lane:
    """A bucket's plan on this rank: views of the two buffers, made once."""

    plan: BucketPlan
    tensors: tuple[Named, ...]  # views of `flat`; none where this rank does not receive
    flat: torch.Tensor  # what is delivered
    travelling: torch.Tensor  # what is sent; the same memory in a bucket that is not assembled
    packed: list[torch.Tensor]  # where this rank's pieces go, as of `_sources`
    sent_runs: list[Run]  # of this rank's pieces
    received_runs: list[Run]
    arrived: list[torch.Tensor]  # pieces, and where they belong
    places: list[torch.Tensor]


class Publisher:
    """The plan of one policy's weights as a family's tensors, and the buffers they pass through. Works on every layout."""

    def __init__(self, policy: Policy, family: Family, *, bucket_bytes: int = 256 << 20, dtype: torch.dtype | None = None, everyone: bool = True) -> None:
        """Make the plan. A collective.

        `dtype` is sent in place of the policy's own format, except for expert biases, which are always float32. With `everyone` each rank of the job receives
        every bucket, as an engine on the same devices needs it; otherwise rank 0 does alone. A rank holds two buffers of `bucket_bytes`, or of the largest
        tensor where that is larger, as long as the publisher lives. Raises `UserError` naming the tensors that the family's table does not fit.
        """
        if bucket_bytes <= 0:
            raise UserError(f"bucket_bytes is {bucket_bytes}; expected a positive number of bytes")
        self.policy, self.everyone = policy, everyone
        self._device, self._rank = policy.platform.device, policy.ranks.rank
        self.receives = everyone or self._rank == 0
        self._units = map_tensors(family, policy.architecture, policy.options.vocab_size, own_tensors(policy), "this model")
        if policy.reward_head == "train":
            raise UserError("a reward model cannot be published: generators take language models; the stage export writes it for a server")

        def owned() -> list[Owned]:
            return [Owned(region.unit, region.row, len(region.data), region.column, region.data.shape[1] if region.data.dim() > 1 else 1, region.data.dtype)
                    for region in regions(policy, self._units) if region.owned]

        mine = storage.on_every_rank(policy.ranks, "cannot plan how the weights are published", None, owned)
        self.plans = plan_buckets(self._units, storage.gather(policy.ranks, mine), dtype, bucket_bytes)
        self._slots = [slot for plan in self.plans for slot in plan.slots]
        held = [plan for plan in self.plans if self.receives or self._rank in plan.senders]
        self._flat = self._buffer(max((plan.bytes for plan in held if self.receives or not plan.assembled), default=0))
        self._travelling = self._buffer(max((plan.segments[-1][2] for plan in held if plan.assembled), default=0))
        self._lanes = [self._lane(plan) for plan in self.plans]
        self._sources: list[list[torch.Tensor]] = []
        self._addresses: list[int] = []

    def publish(self, receiver: Receiver | None) -> Published:
        """Hand every tensor of the current weights to `receiver`, in whole buckets. A collective, which every rank runs to its end.

        `receiver` is called on the ranks that receive; it must be no collective over ranks of the policy that do not. If it raises on one rank, that rank is
        given no more buckets, the pass goes on, and at its end all ranks raise that error: what was received must then not be used. Raises `R1MegaError`
        while a weight set stands in for the weights.
        """
        policy = self.policy
        if policy.foreign_weights is not None:
            raise R1MegaError(f"cannot publish while weight set '{policy.foreign_weights}' stands in for the weights")
        self._find_sources()
        delivery = _Delivery(receiver, self.receives)
        everything: list[torch.Tensor] = []
        with torch.no_grad():
            for index, (lane, sources) in enumerate(zip(self._lanes, self._sources, strict=True)):
                sums = self._send(lane, sources)
                delivery.hand_over(Bucket(policy.version, index, len(self._lanes), lane.tensors, lane.flat[: lane.plan.bytes], sums, lane.received_runs))
                everything.append(sums)
        storage.on_every_rank(policy.ranks, f"version {policy.version} of the weights was not received", None, delivery.finish)
        checksums = {slot.name: describe(slot.dtype, slot.shape, of) for slot, of in zip(self._slots, torch.cat(everything).tolist(), strict=True)}
        return Published(policy.version, len(self._slots), sum(slot.bytes for slot in self._slots), combined(checksums))

    # ---------------------------------------------------------------------------------------------------------------------------- one bucket

    def _send(self, lane: _Lane, sources: list[torch.Tensor]) -> torch.Tensor:
        """Fill the bucket on the ranks that receive; the sums of its tensors, on every rank."""
        if sources:
            torch._foreach_copy_(lane.packed, sources)
        works = self._transfers(lane)
        sums = torch.zeros(len(lane.plan.slots), 3, dtype=torch.int64, device=self._device)
        add_sums(sums, lane.travelling, lane.sent_runs)  # of what is under way
        if self.policy.ranks.world_size > 1:
            dist.all_reduce(sums)
        for work in works:
            work.wait()
        if lane.arrived:
            torch._foreach_copy_(lane.places, lane.arrived)
        return sums

    def _transfers(self, lane: _Lane) -> list[Any]:
        """One for each sender, begun and not waited for, over the group of the policy's device."""
        works: list[Any] = []
        for sender, start, stop in lane.plan.segments if self.policy.ranks.world_size > 1 else ():
            if self.everyone:
                works.append(dist.broadcast(lane.travelling[start:stop], src=sender, async_op=True))
            elif sender != 0 and self._rank == 0:
                works.append(dist.irecv(lane.travelling[start:stop], src=sender))
            elif sender != 0 and self._rank == sender:
                works.append(dist.isend(lane.travelling[start:stop], dst=0))
        return works

    # ------------------------------------------------------------------------------------------------------------------------------ the plan

    def _buffer(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.uint8, device=self._device)

    def _lane(self, plan: BucketPlan) -> _Lane:
        mine = [piece for piece in plan.pieces if piece.sender == self._rank]
        travelling = self._travelling if plan.assembled else self._flat
        packed = [target for piece in mine for target in _targets(travelling, piece)]
        sent = find_runs([piece.block for piece in mine], self._device)
        if not self.receives:
            return _Lane(plan, (), self._flat, travelling, packed, sent, [], [], [])
        tensors = tuple((slot.name, _view(self._flat, slot)) for slot in plan.slots)
        arriving = plan.pieces if plan.assembled else ()
        return _Lane(plan, tensors, self._flat, travelling, packed, sent, find_runs([slot.block(i) for i, slot in enumerate(plan.slots)], self._device),
                     arrived=[_numbers(travelling, piece) for piece in arriving],
                     places=[_place(tensors[piece.block.tensor][1], piece) for piece in arriving])

    def _find_sources(self) -> None:
        """The views of live parameters that fill `packed`; found again when a parameter has moved to other memory, so that no old one is sent."""
        addresses = [tensor.data_ptr() for chunk in self.policy.chunks for tensor in (*chunk.parameters(), *chunk.buffers())]
        if addresses != self._addresses:
            owned = [region.data for region in regions(self.policy, self._units) if region.owned]
            self._sources = [[source for piece in plan.pieces if piece.sender == self._rank for source in _rows(owned[piece.owned], piece.source)]
                             for plan in self.plans]
            self._addresses = addresses


class _Delivery:
    """The receiver of one rank in one pass, and the first error of it."""

    def __init__(self, receiver: Receiver | None, receives: bool) -> None:
        self._receiver = receiver if receives else None
        self._error: Exception | None = None
        if receives and receiver is None:
            self._error = UserError("publish(None) on a rank that receives: give it a receiver, or make the publisher with everyone=False")

    def hand_over(self, bucket: Bucket) -> None:
        if self._receiver is not None and self._error is None:
            try:
                self._receiver(bucket)
            except Exception as error:  # told to all ranks by `finish`
                self._error = error

    def finish(self) -> None:
        if self._error is not None:
            raise self._error


def _checksums(tensors: Sequence[Named], sums: torch.Tensor) -> dict[str, Checksum]:
    return {name: describe(tensor.dtype, tuple(tensor.shape), of) for (name, tensor), of in zip(tensors, sums.tolist(), strict=True)}


# ---------------------------------------------------------------------------------------------------------------------------------------- views


def _view(flat: torch.Tensor, slot: Slot) -> torch.Tensor:
    return flat[slot.start: slot.start + slot.bytes].view(slot.dtype).view(slot.shape)


def _numbers(travelling: torch.Tensor, piece: Piece) -> torch.Tensor:
    """A piece on its way, [rows, columns]."""
    block = piece.block
    return travelling[block.start: block.start + block.bytes].view(block.dtype).view(block.rows, block.columns)


def _place(tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
    """Where a piece belongs, [rows, columns]."""
    block = piece.block
    return tensor.view(len(tensor), -1)[block.row: block.row + block.rows, block.column: block.column + block.columns]


def _even(ranges: Ranges) -> tuple[int, int] | None:
    """(length, distance) of ranges that are of one length and at even distances, as the queries of all groups are."""
    (start, stop), distance = ranges[0], ranges[1][0] - ranges[0][0] if len(ranges) > 1 else 0
    return (stop - start, distance) if all(of == (start + i * distance, stop + i * distance) for i, of in enumerate(ranges)) else None


def _rows(data: torch.Tensor, ranges: Ranges) -> list[torch.Tensor]:
    """Row ranges of a parameter: one view [ranges, rows, columns] where they are even, else one [rows, columns] each."""
    matrix = data if data.dim() > 1 else data.unsqueeze(1)
    if (even := _even(ranges)) is None:
        return [matrix[start:stop] for start, stop in ranges]
    (length, distance), step = even, matrix.stride(0)
    return [matrix.as_strided((len(ranges), length, matrix.shape[1]), (distance * step, *matrix.stride()), matrix.storage_offset() + ranges[0][0] * step)]


def _targets(travelling: torch.Tensor, piece: Piece) -> list[torch.Tensor]:
    """Where each of the views of `_rows` goes."""
    numbers = _numbers(travelling, piece)
    if (even := _even(piece.source)) is None:
        return list(numbers.split([stop - start for start, stop in piece.source]))
    return [numbers.view(len(piece.source), even[0], -1)]
