"""Whether an artifact holds what a published folder holds, number by number."""

from __future__ import annotations

from pathlib import Path

import torch

from r1mega.errors import R1MegaError
from r1mega.policy import storage
from r1mega.policy.architecture import Architecture
from r1mega.policy.hugging_face.family import Family
from r1mega.policy.hugging_face.mapping import map_tensors
from r1mega.policy.hugging_face.published import PublishedWeights
from r1mega.policy.hugging_face.stored import StoredWeights
from r1mega.policy.ranks import Ranks


def check_imported(ranks: Ranks, artifact: Path, folder: Path, family: Family, architecture: Architecture, vocab_size: int) -> dict[str, int]:
    """Read both one tensor at a time, the ranks sharing them, and compare every bit after the cast to the artifact's formats. A collective.

    Returns counts: tensors and parameters of theirs, and how many of the tensors were stored in another format. Raises `R1MegaError` naming the first
    tensor that differs.
    """
    stored = storage.on_every_rank(ranks, f"cannot read {artifact}", None, lambda: StoredWeights(artifact))
    units = map_tensors(family, architecture, vocab_size, stored.shapes, str(artifact))

    def compare() -> tuple[int, int, int]:
        weights = PublishedWeights(folder)
        tensors = parameters = casts = 0
        for unit in units[ranks.rank::ranks.world_size]:
            theirs, ours = weights.region(unit), stored.read(unit)
            if not torch.equal(theirs.to(ours.dtype).contiguous().view(torch.uint8), ours.contiguous().view(torch.uint8)):
                raise R1MegaError(f"{unit.parts[0].name} of {folder} is not what {unit.key}{list(unit.index) or ''} of the import holds")
            tensors += len(unit.parts)
            parameters += sum(part.rows for part in unit.parts) * torch.Size(unit.shape[1:]).numel()
            casts += len(unit.parts) * (theirs.dtype != ours.dtype)
        return tensors, parameters, casts

    mine = storage.on_every_rank(ranks, f"the import of {folder} fails its check", None, compare)
    tensors, parameters, casts = (sum(column) for column in zip(*storage.gather(ranks, mine), strict=True))
    return {"tensors": tensors, "parameters": parameters, "cast": casts}
