"""Our distributed checkpoints read on a CPU, one layer's or one expert's tensor at a time, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from r1mega.errors import R1MegaError
from r1mega.policy.hugging_face.mapping import Unit
from r1mega.policy.keys import saved_tensors


class StoredWeights:
    """The model's tensors in a checkpoint or artifact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes = saved_tensors(folder)
        self._reader = FileSystemReader(folder)
        metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._about = {key: about for key, about in metadata.state_dict_metadata.items() if key in self.shapes and isinstance(about, TensorStorageMetadata)}

    def dtype(self, key: str) -> torch.dtype:
        """The format in which a tensor is stored."""
        found: torch.dtype = self._about[key].properties.dtype
        return found

    def read(self, unit: Unit) -> torch.Tensor:
        """The unit's numbers, in the stored format. Raises `R1MegaError` where the files do not hold all of them."""
        ones = (1,) * len(unit.index)
        wanted = ChunkStorageMetadata(torch.Size((*unit.index, *(0 for _ in unit.shape))), torch.Size((*ones, *unit.shape)))
        found = torch.empty((*ones, *unit.shape), dtype=self.dtype(unit.key))
        items = create_read_items_for_chunk_list(unit.key, self._about[unit.key], [wanted])
        if sum(item.lengths.numel() for item in items) != found.numel():
            raise R1MegaError(f"{self.folder}: the files hold only a part of {unit.key}{list(unit.index) or ''}; run the stage that made them again")
        self._reader.read_data(LoadPlan(items), cast(LoadPlanner, _Into(found))).wait()
        return found.view(unit.shape)


class _Into:
    """The part of torch's load planner that a reader of tensors calls: each region read goes to its place in one tensor."""

    def __init__(self, target: torch.Tensor) -> None:
        self._target = target

    def resolve_tensor(self, item: Any) -> torch.Tensor:
        place = tuple(slice(start, start + length) for start, length in zip(item.dest_offsets, item.lengths, strict=True))
        return self._target[place]

    def commit_tensor(self, item: Any, tensor: torch.Tensor) -> None:
        """Nothing is left to do: `resolve_tensor` gave a view."""
