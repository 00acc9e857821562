"""Packing: which replica trains which sequences, and in which micro-batches. Pure Python, no tensors.

The recipe's scheme (DeepSeek-R1, RL infrastructure: sort the global batch by length, spread it over the data-parallel ranks, best-fit into
fixed-length bins per rank, equalise the number of bins), with two additions. Sequences stay with the replica that already holds their
per-token data unless moving them saves a bin, and within a replica the bins are filled evenly, so that no micro-batch is left nearly empty.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

Bin = list[int]  # indices of the sequences of one micro-batch


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """The micro-batches of every replica, equally many each. All lengths are in tokens."""

    microbatches: tuple[tuple[tuple[int, ...], ...], ...]  # [replica][micro-batch] -> ascending indices; empty only if sequences are too few
    bin_size: int
    tokens: int  # sum of all lengths
    moved: int  # sequences that leave the replica that owned them

    @property
    def microbatches_per_replica(self) -> int:
        return len(self.microbatches[0])

    @property
    def bins(self) -> int:
        """Micro-batches of all replicas together."""
        return len(self.microbatches) * self.microbatches_per_replica

    @property
    def fill(self) -> float:
        """Tokens over the room of all bins, after equalising their number over replicas; 0 to 1."""
        return self.tokens / (self.bins * self.bin_size) if self.bins else 1.0


def plan(
    lengths: Sequence[int], owners: Sequence[int] | None, bin_size: int, replicas: int, multiple_of_microbatches: int = 1
) -> PackingPlan:
    """Pack sequences of `lengths` tokens into bins of `bin_size` tokens, the same number of bins on each of `replicas` replicas.

    `owners[i]` is the replica that holds sequence i now (None: no sequence has a home yet). The number of bins is what best-fit decreasing
    needs for the whole batch, rounded up to a multiple of `replicas * multiple_of_microbatches`; owners never cost a bin. The same arguments
    give the same plan everywhere, so every rank can compute it from the gathered lengths.

    Raises `ValueError` for a sequence that fits in no bin (naming it), for an owner that does not exist, and for impossible sizes.
    """
    _check(lengths, owners, bin_size, replicas, multiple_of_microbatches)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    together, _ = _best_fit(order, lengths, bin_size, limit=len(lengths))
    per_replica = -(-len(together) // (replicas * multiple_of_microbatches)) * multiple_of_microbatches
    start = _spread(order, lengths, replicas) if owners is None else list(owners)
    packed = _pack_at_home(order, lengths, start, bin_size, replicas, per_replica)
    if packed is None:
        packed = _deal(together, lengths, start, replicas, per_replica)
    moved = 0 if owners is None else sum(owners[i] != replica for replica, bins in enumerate(packed) for members in bins for i in members)
    return PackingPlan(_in_order(packed, lengths), bin_size, sum(lengths), moved)


def _check(lengths: Sequence[int], owners: Sequence[int] | None, bin_size: int, replicas: int, multiple: int) -> None:
    if bin_size < 1 or replicas < 1 or multiple < 1:
        raise ValueError(f"bin_size, replicas and multiple_of_microbatches must be at least 1, got {bin_size}, {replicas}, {multiple}")
    for i, length in enumerate(lengths):
        if not 0 < length <= bin_size:
            raise ValueError(f"sequence {i} has {length} tokens; a bin holds 1 to {bin_size}. Raise the bin size or cap the lengths")
    if owners is None:
        return
    if len(owners) != len(lengths):
        raise ValueError(f"{len(lengths)} lengths but {len(owners)} owners")
    for i, owner in enumerate(owners):
        if not 0 <= owner < replicas:
            raise ValueError(f"sequence {i} is owned by replica {owner}; replicas are 0 to {replicas - 1}")


def _best_fit(order: Sequence[int], lengths: Sequence[int], bin_size: int, limit: int) -> tuple[list[Bin], Bin]:
    """Best-fit decreasing into at most `limit` bins: (the bins, what did not fit)."""
    bins: list[Bin] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    left: Bin = []
    for i in order:
        at = bisect_left(rooms, (lengths[i], -1))
        if at < len(rooms):
            room, home = rooms.pop(at)
        elif len(bins) < limit:
            room, home = bin_size, len(bins)
            bins.append([])
        else:
            left.append(i)
            continue
        bins[home].append(i)
        insort(rooms, (room - lengths[i], home))
    return bins, left


def _even_fit(order: Sequence[int], lengths: Sequence[int], bin_size: int, count: int) -> tuple[list[Bin], Bin]:
    """Longest first, each into the emptiest of `count` bins: even loads, but what does not fit there fits nowhere."""
    bins: list[Bin] = [[] for _ in range(count)]
    loads = [(0, b) for b in range(count)]
    left: Bin = []
    for i in order:
        load, home = loads[0]
        if load + lengths[i] > bin_size:
            left.append(i)
            continue
        bins[home].append(i)
        heapq.heapreplace(loads, (load + lengths[i], home))
    return bins, left


def _spread(order: Sequence[int], lengths: Sequence[int], replicas: int) -> list[int]:
    """Homes for sequences that have none: longest first, each to the replica with the fewest tokens."""
    homes = [0] * len(lengths)
    loads = [(0, replica) for replica in range(replicas)]
    for i in order:
        load, homes[i] = loads[0]
        heapq.heapreplace(loads, (load + lengths[i], homes[i]))
    return homes


def _pack_at_home(
    order: Sequence[int], lengths: Sequence[int], start: Sequence[int], bin_size: int, replicas: int, per_replica: int
) -> list[list[Bin]] | None:
    """Pack each replica's own sequences, after moving as few as possible from full replicas to others; None if that does not fit."""
    capacity = per_replica * bin_size
    slack = capacity - sum(lengths) / replicas
    homes = _relieve(lengths, start, replicas, int(capacity - slack / 2))
    own: list[Bin] = [[] for _ in range(replicas)]
    for i in order:
        own[homes[i]].append(i)
    packed: list[list[Bin]] = []
    left: Bin = []
    for mine in own:
        bins, over = _even_fit(mine, lengths, bin_size, per_replica)
        if over:
            bins, over = _best_fit(mine, lengths, bin_size, per_replica)
            bins += [[] for _ in range(per_replica - len(bins))]
        packed.append(bins)
        left += over
    return packed if _place(left, packed, lengths, bin_size) else None


def _place(left: Bin, packed: list[list[Bin]], lengths: Sequence[int], bin_size: int) -> bool:
    """Put the sequences that did not fit at home into the fullest bin anywhere that holds them; False if one fits nowhere."""
    if not left:
        return True
    rooms = sorted((bin_size - sum(lengths[i] for i in members), replica, b)
                   for replica, bins in enumerate(packed) for b, members in enumerate(bins))
    for i in sorted(left, key=lambda i: (-lengths[i], i)):
        at = bisect_left(rooms, (lengths[i], -1, -1))
        if at == len(rooms):
            return False
        room, replica, b = rooms.pop(at)
        packed[replica][b].append(i)
        insort(rooms, (room - lengths[i], replica, b))
    return True


def _relieve(lengths: Sequence[int], start: Sequence[int], replicas: int, limit: int) -> list[int]:
    """Move sequences from replicas with more than `limit` tokens to those with room, in few moves: each time the shortest sequence that
    ends the excess, or else the longest that the receiver can take."""
    homes = list(start)
    loads = [0] * replicas
    members: list[list[tuple[int, int]]] = [[] for _ in range(replicas)]  # (length, index), sorted
    for i, home in enumerate(homes):
        loads[home] += lengths[i]
        members[home].append((lengths[i], i))
    for mine in members:
        mine.sort()
    while True:
        giver = max(range(replicas), key=lambda r: (loads[r], -r))
        taker = min(range(replicas), key=lambda r: (loads[r], r))
        excess, room = loads[giver] - limit, limit - loads[taker]
        fitting = bisect_right(members[giver], (room, len(lengths)))
        if excess <= 0 or fitting == 0:
            return homes
        enough = bisect_left(members[giver], (excess, -1))
        length, i = members[giver].pop(enough if enough < fitting else fitting - 1)
        insort(members[taker], (length, i))
        homes[i] = taker
        loads[giver] -= length
        loads[taker] += length


def _deal(together: Sequence[Bin], lengths: Sequence[int], start: Sequence[int], replicas: int, per_replica: int) -> list[list[Bin]]:
    """Give each bin of the whole batch to the replica that holds most of its tokens and still takes bins."""
    packed: list[list[Bin]] = [[] for _ in range(replicas)]
    for members in together:
        held = [0] * replicas
        for i in members:
            held[start[i]] += lengths[i]
        open_ = [replica for replica in range(replicas) if len(packed[replica]) < per_replica]
        packed[max(open_, key=lambda r: (held[r], -len(packed[r]), -r))].append(members)
    for bins in packed:
        bins += [[] for _ in range(per_replica - len(bins))]
    return packed


def _in_order(packed: Sequence[Sequence[Bin]], lengths: Sequence[int]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Fullest micro-batch first on every replica, so that micro-batches that run at the same time have much the same size."""
    def rank(members: Bin) -> tuple[int, int]:
        return -sum(lengths[i] for i in members), min(members, default=-1)

    return tuple(tuple(tuple(sorted(members)) for members in sorted(bins, key=rank)) for bins in packed)
