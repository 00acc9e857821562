"""Moving sequences between replicas to balance their micro-batches: point to point, in one message per pair, nothing through one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from r1mega.types import TrainSequence

ARRAYS = tuple(field.name for field in fields(TrainSequence) if field.name != "id")


def exchange(mine: Sequence[TrainSequence], *, owners: Sequence[int], lengths: Sequence[int], homes: Sequence[int], me: int, peers: Sequence[int],
             group: Any) -> dict[int, TrainSequence]:
    """This replica's sequences by global index after every sequence has gone from its owner to its home.

    `owners`, `lengths`, `homes` cover all sequences of the minibatch, the same on every rank; `mine` are those owned by replica `me`, in order.
    `peers[r]` is the global rank that stands for this rank in replica r. A collective over the peers.
    """
    here = iter(mine)
    at_owner = {index: next(here) for index, owner in enumerate(owners) if owner == me}
    kept = {index: sequence for index, sequence in at_owner.items() if homes[index] == me}
    waiting: list[Any] = []
    incoming: dict[int, tuple[list[int], torch.Tensor]] = {}
    present = _present(mine, group, len(peers))
    for other in range(len(peers)):
        if other == me:
            continue
        out = [index for index in at_owner if homes[index] == other]
        if out:
            waiting.append(dist.isend(_flatten([at_owner[index] for index in out], present), dst=peers[other], group=group))
        into = [index for index, owner in enumerate(owners) if owner == other and homes[index] == me]
        if into:
            buffer = torch.empty(len(present), sum(lengths[index] for index in into), dtype=torch.float64)
            incoming[other] = (into, buffer)
            waiting.append(dist.irecv(buffer, src=peers[other], group=group))
    for work in waiting:
        work.wait()
    for into, buffer in incoming.values():
        for index, columns in zip(into, buffer.split([lengths[index] for index in into], dim=1), strict=True):
            kept[index] = _restore(str(index), columns, present)
    return kept


def _present(mine: Sequence[TrainSequence], group: Any, count: int) -> list[str]:
    """Which arrays the sequences have; a replica without sequences learns it from the others."""
    flags = torch.tensor([float(bool(mine) and getattr(mine[0], name) is not None) for name in ARRAYS])
    if count > 1:
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=group)
    return [name for name, flag in zip(ARRAYS, flags.tolist(), strict=True) if flag]


def _flatten(sequences: Sequence[TrainSequence], names: Sequence[str]) -> torch.Tensor:
    """float64 [arrays, tokens]: exact for token ids below 2**53 and for float32."""
    return torch.from_numpy(np.stack([np.concatenate([getattr(sequence, name) for sequence in sequences]).astype(np.float64) for name in names]))


def _restore(name: str, columns: torch.Tensor, names: Sequence[str]) -> TrainSequence:
    arrays: dict[str, Any] = {field: row.numpy().astype(np.int64 if field == "tokens" else np.float32)
                              for field, row in zip(names, columns, strict=True)}
    return TrainSequence(id=name, **arrays)
