"""A folder of sharded safetensors with `model.safetensors.index.json`: planned, written shard by shard, read region by region."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from r1mega.errors import DataError
from r1mega.policy.hugging_face.block_scales import FP8, SUFFIX, Block, Dequantiser, scales_of, stated_block
from r1mega.policy.hugging_face.mapping import Part, Unit
from r1mega.policy.hugging_face.tensor_file import FORMATS, TensorFile
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
    files.share(folder / shard.file)
    files.sync(folder / shard.file)


def rows_of(whole: torch.Tensor, part: Part) -> torch.Tensor:
    """A part cut out of its unit, in memory of its own."""
    return torch.cat([whole[start:stop] for start, stop in part.ranges])


class PublishedWeights:
    """The tensors of a folder, open as long as this object lives; only what is asked for is read. Those in FP8 are float32 to whoever asks."""

    def __init__(self, folder: Path, block: Block | None = None) -> None:
        """`block`: the rows and columns of FP8 weights that have one scale; None: as config.json says.

        Raises `DataError` for a folder without weights, a file that is missing or no safetensors file, weights in a format that is not known, or in FP8
        without their scales; `ConfigError` for a quantisation that is not known.
        """
        self.folder = folder
        self.files: Mapping[str, str] = _weight_map(folder)
        self._open: dict[str, TensorFile] = {}
        for file in sorted(set(self.files.values())):
            try:
                self._open[file] = TensorFile(folder / file)
            except FileNotFoundError as error:
                raise DataError(f"{folder / file} is missing: {INDEX} names it") from error
        if absent := [name for name, file in self.files.items() if name not in self._open[file].tensors]:
            raise DataError(f"{folder / self.files[absent[0]]} does not hold {absent[0]}, which {INDEX} says is there")
        self._where = {name: file for file in self._open.values() for name in file.tensors} | {name: self._open[file] for name, file in self.files.items()}
        about = {name: file.tensors[name] for name, file in self._where.items()}
        if unknown := [name for name, stored in about.items() if stored.format not in FORMATS]:
            raise DataError(f"{self._where[unknown[0]].path}: {unknown[0]} is {about[unknown[0]].format}; weights are read from {', '.join(FORMATS)}")
        self._block = block or stated_block(folder)
        self.names = about.keys() - scales_of(folder, about, self._block)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._where[name].tensors[name].shape

    def region(self, unit: Unit, start: int = 0, stop: int | None = None, columns: slice = slice(None)) -> torch.Tensor:
        """Rows start ... stop - 1 of a unit (its `columns` where it is a matrix) from the parts that make them; rows of no part are 0."""
        stop = unit.shape[0] if stop is None else stop
        width = [len(range(*columns.indices(extent))) for extent in unit.shape[1:]]
        found = torch.empty((stop - start, *width), dtype=functools.reduce(torch.promote_types, [self._dtype(part.name) for part in unit.parts]))
        self.fill(found, unit, start, columns)
        return found

    def fill(self, target: torch.Tensor, unit: Unit, start: int = 0, columns: slice = slice(None)) -> None:
        """The same into a tensor of any format, on any device, that has as many rows as are wanted; a few megabytes are held beside it."""
        found = [(part.name, ours, theirs) for part in unit.parts for ours, theirs in part.overlaps(start, start + target.shape[0])]
        if sum(ours.stop - ours.start for _, ours, _ in found) < target.shape[0]:
            target.zero_()
        for name, ours, theirs in found:
            self._copy(target[ours], name, theirs, columns)

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same bits."""
        first, second = (self._where[name].tensors[name] for name in (one, other))
        if (first.format, first.shape) != (second.format, second.shape):
            return False
        pieces = zip(self._where[one].pieces(one, 0, first.shape[0]), self._where[other].pieces(other, 0, first.shape[0]), strict=True)
        return all(torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8)) for (_, mine), (_, theirs) in pieces)

    def tensor(self, name: str) -> torch.Tensor:
        """One whole tensor."""
        shape = self.shape(name)
        found = torch.empty(shape, dtype=self._dtype(name))
        self._copy(found, name, slice(0, shape[0]), slice(None))
        return found

    def _dtype(self, name: str) -> torch.dtype:
        stored = self._where[name].tensors[name]
        return torch.float32 if stored.format == FP8 else stored.dtype

    def _copy(self, target: torch.Tensor, name: str, rows: slice, columns: slice) -> None:
        """These rows and columns of a tensor, read straight to their place where they are as they are stored."""
        file = self._where[name]
        stored = file.tensors[name]
        if target.dtype == stored.dtype and target.device.type == "cpu" and target.is_contiguous() and target.shape[1:] == stored.shape[1:]:
            file.read(name, rows.start, target)
            return
        scaled = self._dequantiser(name, rows, columns) if stored.format == FP8 else None
        for first, piece in file.pieces(name, rows.start, rows.stop, share=1 if scaled is None else 8):
            wanted = piece if len(stored.shape) == 1 else piece[:, columns]
            target[first - rows.start: first - rows.start + len(piece)].copy_(wanted if scaled is None else scaled(first, wanted))

    def _dequantiser(self, name: str, rows: slice, columns: slice) -> Dequantiser:
        scale, first = name + SUFFIX, rows.start // self._block[0]
        last = -(-rows.stop // self._block[0])
        scales = torch.empty(last - first, self.shape(scale)[1])
        self._where[scale].read(scale, first, scales)
        start, stop, _ = columns.indices(self.shape(name)[1])
        return Dequantiser(scales, self._block, rows.start, slice(start, stop))


def _weight_map(folder: Path) -> dict[str, str]:
    if (index := folder / INDEX).is_file():
        try:
            return {str(name): str(file) for name, file in json.loads(index.read_bytes())["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{index}: not an index of safetensors files: {error!r}") from error
    if not (folder / SINGLE).is_file():
        raise DataError(f"{folder} holds no weights: neither {INDEX} nor {SINGLE}")
    return dict.fromkeys(TensorFile(folder / SINGLE).tensors, SINGLE)
