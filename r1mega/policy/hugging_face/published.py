"""A folder of sharded safetensors with `model.safetensors.index.json`: planned, written shard by shard, read region by region."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from r1mega.errors import DataError
from r1mega.policy.hugging_face.mapping import Part, Unit
from r1mega.recipe import files

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Shard:
    """One file and the units whose parts it holds."""

    file: str
    units: tuple[Unit, ...]


def plan_shards(units: Sequence[Unit], dtype_of: Callable[[Unit], torch.dtype], shard_bytes: int) -> tuple[list[Shard], dict[str, Any]]:
    """Units in order into shards of at most `shard_bytes`, at least one unit each; and the index's content."""
    groups: list[list[Unit]] = []
    room, total, parameters = 0, 0, 0
    for unit in units:
        row = torch.Size(unit.shape[1:]).numel()
        size = sum(part.rows * (1 + len(part.copies)) for part in unit.parts) * row * dtype_of(unit).itemsize
        if size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(unit)
        room, total, parameters = room - size, total + size, parameters + sum(part.rows for part in unit.parts) * row
    shards = [Shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", tuple(group)) for number, group in enumerate(groups, 1)]
    names = {name: shard.file for shard in shards for unit in shard.units for name in unit.names}
    return shards, {"metadata": {"total_size": total, "total_parameters": parameters}, "weight_map": dict(sorted(names.items()))}


def write_shard(folder: Path, shard: Shard, read: Callable[[Unit], torch.Tensor]) -> None:
    """Write one file, flushed. `read` gives a unit in the format in which it is to be written; this file is the most that is held at a time."""
    tensors: dict[str, torch.Tensor] = {}
    for unit in shard.units:
        whole = read(unit)
        for part in unit.parts:
            for name in (part.name, *part.copies):
                tensors[name] = rows_of(whole, part)
    save_file(tensors, folder / shard.file, metadata={"format": "pt"})
    files.sync(folder / shard.file)


def rows_of(whole: torch.Tensor, part: Part) -> torch.Tensor:
    """A part cut out of its unit, in memory of its own."""
    return torch.cat([whole[start:stop] for start, stop in part.ranges])


class PublishedWeights:
    """The tensors of a folder, open as long as this object lives; only what is asked for is read."""

    def __init__(self, folder: Path) -> None:
        """Raises `DataError` for a folder without weights, or a file that is missing or no safetensors file."""
        self.folder = folder
        self.files: Mapping[str, str] = _weight_map(folder)
        self._open: dict[str, Any] = {}
        for file in sorted(set(self.files.values())):
            try:
                self._open[file] = safe_open(folder / file, framework="pt")
            except FileNotFoundError as error:
                raise DataError(f"{folder / file} is missing: {INDEX} names it") from error
            except (SafetensorError, OSError) as error:
                raise DataError(f"{folder / file}: not a whole safetensors file: {error}") from error
        held = {file: set(reader.keys()) for file, reader in self._open.items()}
        if absent := [name for name, file in self.files.items() if name not in held[file]]:
            raise DataError(f"{folder / self.files[absent[0]]} does not hold {absent[0]}, which {INDEX} says is there")
        self.names = {name for names in held.values() for name in names}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def region(self, unit: Unit, start: int = 0, stop: int | None = None, columns: slice = slice(None)) -> torch.Tensor:
        """Rows start ... stop - 1 of a unit (its `columns` where it is a matrix) from the parts that make them; rows of no part are 0."""
        stop = unit.shape[0] if stop is None else stop
        found: torch.Tensor | None = None
        for part in unit.parts:
            for ours, theirs in _overlaps(part, start, stop):
                tensor = self._slice(part.name)
                piece: torch.Tensor = tensor[theirs] if len(unit.shape) == 1 else tensor[theirs, columns]
                if found is None:
                    found = piece.new_zeros((stop - start, *piece.shape[1:]))
                found[ours] = piece
        if found is None:  # all of it padding
            width = torch.empty((0, *unit.shape[1:]))[:, columns].shape[1:] if len(unit.shape) > 1 else ()
            found = torch.zeros((stop - start, *width))
        return found

    def tensor(self, name: str) -> torch.Tensor:
        """One whole tensor."""
        found: torch.Tensor = self._open[self.files[name]].get_tensor(name)
        return found

    def _slice(self, name: str) -> Any:
        return self._open[self.files[name]].get_slice(name)


def _overlaps(part: Part, start: int, stop: int) -> list[tuple[slice, slice]]:
    """Where the rows start ... stop - 1 of a unit come from a part: (rows of the region, rows of the part)."""
    found, place = [], 0
    for first, last in part.ranges:
        low, high = max(first, start), min(last, stop)
        if low < high:
            found.append((slice(low - start, high - start), slice(place + low - first, place + high - first)))
        place += last - first
    return found


def _weight_map(folder: Path) -> dict[str, str]:
    if (index := folder / INDEX).is_file():
        try:
            return {str(name): str(file) for name, file in json.loads(index.read_bytes())["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{index}: not an index of safetensors files: {error!r}") from error
    if not (folder / SINGLE).is_file():
        raise DataError(f"{folder} holds no weights: neither {INDEX} nor {SINGLE}")
    try:
        with safe_open(folder / SINGLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), SINGLE)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{folder / SINGLE}: not a whole safetensors file: {error}") from error
