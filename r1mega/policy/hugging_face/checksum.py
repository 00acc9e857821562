"""Checksums of tensors that add up over their shards: whoever holds a part computes its share, and the sum is that of the whole.

Of a tensor's numbers as integers x[r, c] (their bits): the sum of x, of (r + 1) x and of (c + 1) x, modulo 2^64. A stale, truncated or half-filled
tensor has another in all practice, and so has one whose rows or columns changed places. They guard against mistakes and damage, not against malice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Checksum(NamedTuple):
    """What a tensor is, and its three sums."""

    dtype: str
    shape: tuple[int, ...]
    total: int
    rows: int
    columns: int


class Block(NamedTuple):
    """A rectangle of a tensor that lies in a flat buffer row by row. A vector is a column."""

    tensor: int  # which of the tensors
    dtype: torch.dtype
    row: int  # where the rectangle begins in the tensor
    rows: int
    column: int
    columns: int
    start: int  # where it lies in the buffer, in bytes, a multiple of the number's size

    @property
    def numbers(self) -> int:
        return self.rows * self.columns

    @property
    def bytes(self) -> int:
        return self.numbers * self.dtype.itemsize


class Run(NamedTuple):
    """Like blocks of successive tensors at even distances in a buffer: summed in one go."""

    first: Block
    blocks: int = 1
    stride: int = 0  # bytes


def checksum_of(tensor: torch.Tensor) -> Checksum:
    """The checksum of one tensor of any shape; beyond the first, its axes count as one."""
    shape = tuple(tensor.shape)
    rows = shape[0] if shape else 1
    block = Block(0, tensor.dtype, 0, rows, 0, tensor.numel() // rows if rows else 0, 0)
    sums = torch.zeros(1, 3, dtype=torch.int64, device=tensor.device)
    if block.numbers:
        add_sums(sums, tensor.detach().contiguous().view(-1).view(torch.uint8), find_runs([block], tensor.device))
    return describe(tensor.dtype, shape, sums[0].tolist())


def describe(dtype: torch.dtype, shape: tuple[int, ...], sums: Sequence[int]) -> Checksum:
    """A checksum from its three sums."""
    return Checksum(str(dtype).removeprefix("torch."), shape, *sums)


def combined(checksums: Mapping[str, Checksum]) -> str:
    """One SHA-256 of all tensors' names and checksums, in whatever order they came."""
    digest = hashlib.sha256()
    for name in sorted(checksums):
        digest.update(f"{name} {tuple(checksums[name])}\n".encode())
    return digest.hexdigest()


def find_runs(blocks: Iterable[Block], device: torch.device) -> list[Run]:
    """Blocks, in the order of their tensors, gathered into runs. A run is at most what is summed without leaving a CPU's cache, or without taking memory
    worth mentioning on a GPU: the sums need the numbers as 64-bit integers."""
    most = 1 << 22 if device.type == "cuda" else 1 << 18
    runs: list[Run] = []
    for block in blocks:
        if block.numbers > most:
            step = max(1, most // block.columns)
            for row in range(0, block.rows, step):
                runs.append(Run(block._replace(row=block.row + row, rows=min(step, block.rows - row),
                                               start=block.start + row * block.columns * block.dtype.itemsize)))
        elif runs and (longer := _extended(runs[-1], block, most)):
            runs[-1] = longer
        else:
            runs.append(Run(block))
    return runs


def _extended(run: Run, block: Block, most: int) -> Run | None:
    first, count = run.first, run.blocks
    stride = run.stride or block.start - first.start
    like = first._replace(tensor=first.tensor + count, start=first.start + count * stride)
    return Run(first, count + 1, stride) if like == block and (count + 1) * block.numbers <= most else None


def add_sums(sums: torch.Tensor, flat: torch.Tensor, runs: Iterable[Run]) -> None:
    """Add the share of each run, which lies in the bytes of `flat` (uint8), to `sums` (int64 [tensors, 3], wrapping)."""
    for (tensor, dtype, row, rows, column, columns, start), count, stride in runs:
        bits, size = flat.view(_BITS[dtype.itemsize]), dtype.itemsize
        numbers = bits.as_strided((count, rows, columns), (stride // size, columns, 1), bits.storage_offset() + start // size).long()
        by_row, by_column = numbers.sum(2), numbers.sum(1)
        sums[tensor:tensor + count] += torch.stack((
            by_row.sum(1), (by_row * torch.arange(row + 1, row + rows + 1, device=flat.device)).sum(1),
            (by_column * torch.arange(column + 1, column + columns + 1, device=flat.device)).sum(1)), 1)
