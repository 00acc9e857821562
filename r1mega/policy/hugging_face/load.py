"""From a folder of published weights into a policy: every rank reads its own slices, of what is split by columns whole rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from r1mega.policy import storage
from r1mega.policy.hugging_face.family import Family
from r1mega.policy.hugging_face.mapping import Unit, map_tensors, report_problems
from r1mega.policy.hugging_face.published import PublishedWeights
from r1mega.policy.hugging_face.regions import regions
from r1mega.policy.hugging_face.rows import EMBEDDING, HEAD
from r1mega.policy.keys import own_tensors
from r1mega.policy.policy import Policy

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def load_published(policy: Policy, folder: Path, family: Family) -> None:
    """Fill the policy's weights from a folder of `family`, cast to the policy's formats; the optimizer's own copies follow. A collective.

    Works on every layout: the family's table is applied to the regions of the whole tensors that this rank holds. A policy without multi-token-prediction
    layers leaves those of the folder out; a reward model takes a folder with a scalar head and keeps the heads that it does not use. Raises `UserError`
    telling together which tensors are missing, unknown, of another shape, or repeat another one with other numbers; `DataError` for a folder that is damaged.
    """
    shapes, reward = own_tensors(policy), policy.reward_head == "train"
    units = map_tensors(family, policy.architecture, policy.options.vocab_size, shapes, "this model", reward=reward)

    def fill() -> None:
        weights = PublishedWeights(folder)
        _check(weights, units, policy.architecture.num_layers if family.prediction and (reward or not policy.architecture.mtp_num_layers) else None,
               copies=_copies(units, tied=policy.architecture.tied_embeddings), compare=policy.ranks.rank == 0)
        for region in regions(policy, units):
            columns = slice(region.column, region.column + region.data.shape[1]) if region.data.dim() > 1 else slice(None)
            weights.fill(region.data, units[region.unit], region.row, columns)

    storage.on_every_rank(policy.ranks, f"cannot load {folder}", None, fill)
    if policy.optimizer is not None:
        policy.optimizer.reload_model_params()


def _copies(units: Sequence[Unit], *, tied: bool) -> dict[str, str]:
    """What a folder may hold besides, and of which tensor it must be a copy: with tied embeddings some releases have a head all the same."""
    found = {copy: part.name for unit in units for part in unit.parts for copy in part.copies}
    return found | ({HEAD.theirs[0]: EMBEDDING.theirs[0]} if tied else {})


def _check(weights: PublishedWeights, units: Sequence[Unit], left_out: int | None, *, copies: Mapping[str, str], compare: bool) -> None:
    """`left_out`: from which layer on the folder may have what the policy does without. `compare`: whether this rank compares the copies."""
    parts = {part.name: (part.rows, *unit.shape[1:]) for unit in units for part in unit.parts}
    allowed = parts.keys() | copies.keys()
    others = sorted(copy for copy, name in copies.items() if compare and {copy, name} <= weights.names and not weights.same(copy, name))
    shapes = [f"{name} is {list(weights.shape(name))} there and {list(shape)} here" for name, shape in parts.items()
              if name in weights.names and weights.shape(name) != shape]
    besides = sorted(name for name in weights.names - allowed
                     if left_out is None or not (layer := _LAYER.match(name)) or int(layer[1]) < left_out)
    report_problems(f"the weights in {weights.folder} are of another model",
                    {"it lacks": sorted(parts.keys() - weights.names), "it has besides": besides, "shapes differ": shapes,
                     "numbers differ": [f"{copy} is no copy of {copies[copy]}" for copy in others]})
