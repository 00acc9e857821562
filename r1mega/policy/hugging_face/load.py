"""From a folder of published weights into a policy: every rank reads its own slices and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.utils import nested_values

from r1mega.errors import R1MegaError
from r1mega.policy import storage
from r1mega.policy.hugging_face.family import Family
from r1mega.policy.hugging_face.mapping import Unit, map_tensors, report_problems
from r1mega.policy.hugging_face.published import PublishedWeights
from r1mega.policy.keys import model_state, own_tensors
from r1mega.policy.policy import Policy


def load_published(policy: Policy, folder: Path, family: Family) -> None:
    """Fill the policy's weights from a folder of `family`, cast to the policy's formats; the optimizer's own copies follow. A collective.

    Works on every layout: the family's table is applied to the regions of the whole tensors that this rank holds. Raises `UserError` listing all
    tensors that are missing, unknown or of another shape, `DataError` for a folder that is damaged.
    """
    shapes = own_tensors(policy)
    units = map_tensors(family, policy.architecture, policy.options.vocab_size, shapes, "this model")

    def fill() -> None:
        weights = PublishedWeights(folder)
        _check(weights, units)
        by_place = {(unit.key, unit.index): unit for unit in units}
        depth = {unit.key: len(unit.index) for unit in units}
        state: dict[str, Any] = model_state(policy)
        apply_factories(state)
        with torch.no_grad():
            for shard in nested_values(state):
                if isinstance(shard, ShardedTensor):
                    _fill(shard, weights, by_place[shard.key, tuple(shard.global_offset[: depth[shard.key]])])

    storage.on_every_rank(policy.ranks, f"cannot load {folder}", folder, fill)
    if policy.optimizer is not None:
        policy.optimizer.reload_model_params()


def _check(weights: PublishedWeights, units: Sequence[Unit]) -> None:
    parts = {part.name: (part.rows, *unit.shape[1:]) for unit in units for part in unit.parts}
    allowed = {name for unit in units for name in unit.names}
    shapes = [f"{name} is {list(weights.shape(name))} there and {list(shape)} here" for name, shape in parts.items()
              if name in weights.names and weights.shape(name) != shape]
    report_problems(f"the weights in {weights.folder} are of another model",
                    {"it lacks": sorted(parts.keys() - weights.names), "it has besides": sorted(weights.names - allowed), "shapes differ": shapes})


def _fill(shard: ShardedTensor, weights: PublishedWeights, unit: Unit) -> None:
    """Megatron's shard: `data` is a view of the parameter, `global_offset` where it begins in the whole tensor."""
    lead = len(unit.index)
    if shard.prepend_axis_num != lead or shard.data is None:
        raise R1MegaError(f"{shard.key}: this rank holds several of its entries in one tensor, which this version cannot load")
    start, data = shard.global_offset[lead], shard.data
    columns = slice(shard.global_offset[lead + 1], shard.global_offset[lead + 1] + data.shape[1]) if data.dim() > 1 else slice(None)
    data.copy_(weights.region(unit, start, start + data.shape[0], columns))
