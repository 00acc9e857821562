"""Which part of which unit this rank's parameters are, by Megatron's own description of its shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica
from megatron.core.dist_checkpointing.utils import nested_values

from r1mega.errors import R1MegaError
from r1mega.policy.hugging_face.mapping import Unit
from r1mega.policy.keys import model_state
from r1mega.policy.policy import Policy


class Region(NamedTuple):
    """Rows row ... of a unit (and its columns column ...) that this rank holds."""

    unit: int  # which of the units
    row: int
    column: int  # 0 for a vector
    data: torch.Tensor  # a view of the live parameter
    owned: bool  # by this rank, of all that hold a copy


def regions(policy: Policy, units: Sequence[Unit]) -> Iterator[Region]:
    """The regions that this rank holds of a model's units; what is in no unit is left out. No collective."""
    by_place = {(unit.key, unit.index): number for number, unit in enumerate(units)}
    depth = {unit.key: len(unit.index) for unit in units}
    state: dict[str, Any] = model_state(policy)
    with torch.no_grad():
        apply_factories(state)
    for shard in nested_values(state):
        if isinstance(shard, ShardedTensor) and shard.key in depth:
            lead = depth[shard.key]
            if shard.prepend_axis_num != lead or shard.data is None:
                raise R1MegaError(f"{shard.key}: this rank holds several of its entries in one tensor, which this version does not read")
            row, *column = shard.global_offset[lead:]
            yield Region(by_place[shard.key, tuple(shard.global_offset[:lead])], row, column[0] if column else 0, shard.data.detach(),
                         bool(is_main_replica(shard.replica_id)))
