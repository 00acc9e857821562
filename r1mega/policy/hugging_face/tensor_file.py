"""One safetensors file, of which little is mapped at a time.

The library maps whole files, and the pages that were read count as the process's memory until the mapping goes. It still judges whether a file is whole.
"""

from __future__ import annotations

import json
import mmap
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from r1mega.errors import DataError

PIECE = 2**24  # bytes that are mapped at a time
FORMATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    format: str  # as safetensors spells it
    shape: tuple[int, ...]
    start: int  # bytes, of the file

    @property
    def dtype(self) -> torch.dtype:
        return FORMATS[self.format]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return prod(self.shape[1:])


class TensorFile:
    """A safetensors file, open as long as this object lives."""

    def __init__(self, path: Path) -> None:
        """Raises `DataError` for no whole safetensors file, `FileNotFoundError`."""
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except PermissionError as error:
            raise DataError(f"{path}: permission denied: this user may not read it") from error
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            os.close(self._descriptor)
            raise DataError(f"{path}: not a whole safetensors file: {error}") from error
        weakref.finalize(self, os.close, self._descriptor)
        self.path = path
        size = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        header = json.loads(os.pread(self._descriptor, size, 8))
        header.pop("__metadata__", None)
        self.tensors = {name: Stored(about["dtype"], tuple(about["shape"]), 8 + size + about["data_offsets"][0]) for name, about in header.items()}

    def pieces(self, name: str, start: int, stop: int, share: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
        """Rows start ... stop - 1 of a tensor, some at a time, as (first row, rows): a piece is mapped for as long as it is used.

        `share`: pieces of so much less, where several times a piece is made of each.
        """
        about = self.tensors[name]
        row = about.width * about.dtype.itemsize
        rows = max(1, PIECE // share // max(1, row))
        for first in range(start, stop, rows):
            count = min(rows, stop - first)
            place = about.start + first * row
            before = place % mmap.ALLOCATIONGRANULARITY
            window = mmap.mmap(self._descriptor, before + count * row, access=mmap.ACCESS_COPY, offset=place - before)
            window.madvise(mmap.MADV_WILLNEED)  # in one go, where it is not in the page cache
            yield first, torch.frombuffer(window, dtype=about.dtype, count=count * about.width, offset=before).view(count, *about.shape[1:])

    def read(self, name: str, start: int, into: torch.Tensor) -> None:
        """Rows from `start` on, as many as `into` has: a contiguous tensor in the CPU's memory, of the stored format."""
        about = self.tensors[name]
        numbers: Any = into.reshape(-1).view(torch.uint8).numpy()
        target = memoryview(numbers)
        place = about.start + start * about.width * about.dtype.itemsize
        while len(target):
            count = os.preadv(self._descriptor, [target], place)
            if not count:
                raise DataError(f"{self.path}: the file has become shorter while {name} was read")
            target, place = target[count:], place + count
