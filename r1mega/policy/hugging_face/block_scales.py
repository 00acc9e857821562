"""Weights in FP8 with one scale for each block of a matrix, as DeepSeek-V3 and R1 are released: `NAME` and, in float32, `NAME_scale_inv`.

The number at (row, column) is the stored one times scale[row // block rows, column // block columns].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from r1mega.errors import ConfigError, DataError
from r1mega.policy.hugging_face.tensor_file import Stored

SUFFIX = "_scale_inv"
FP8 = "F8_E4M3"
Block = tuple[int, int]
BLOCK: Block = (128, 128)  # where config.json states none


def stated_block(folder: Path) -> Block:
    """The block's rows and columns by the folder's config.json. Raises `ConfigError` for any other way of quantising, `DataError` for no JSON."""
    path = folder / "config.json"
    try:
        given: Any = json.loads(path.read_bytes()).get("quantization_config") if path.is_file() else None
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: not the configuration of a model: {error}") from error
    if given is None:
        return BLOCK
    where = f"{path}: quantization_config"
    wanted = {"quant_method": ("fp8",), "fmt": ("e4m3", None), "activation_scheme": ("dynamic", None)}
    if not isinstance(given, dict):
        raise ConfigError(f"{where} is {given!r}, which is no mapping")
    for key, known in wanted.items():
        if given.get(key) not in known:
            raise ConfigError(f"{where}.{key}={given.get(key)}: weights quantised so cannot be read, only {key}={known[0]}; convert the checkpoint to bf16")
    block = given.get("weight_block_size", BLOCK)
    if not (isinstance(block, list | tuple) and len(block) == 2 and all(isinstance(extent, int) and extent > 0 for extent in block)):
        raise ConfigError(f"{where}.weight_block_size={block}: expected a block's rows and columns, such as [128, 128]; other scales cannot be read")
    return block[0], block[1]


def scales_of(folder: Path, tensors: Mapping[str, Stored], block: Block) -> set[str]:
    """The names of the scales of all FP8 tensors. Raises `DataError` where one is absent or does not fit its weight."""
    problems, found = [], set()
    for name, about in tensors.items():
        if about.format != FP8:
            continue
        scale = tensors.get(name + SUFFIX)
        wanted = tuple(-(-extent // size) for extent, size in zip(about.shape, block, strict=False))
        if len(about.shape) != 2:
            problems.append(f"{name} is FP8 and no matrix")
        elif scale is None:
            problems.append(f"{name} is FP8 and {name}{SUFFIX} is not there")
        elif (scale.format, scale.shape) != ("F32", wanted):
            problems.append(f"{name}{SUFFIX} is {scale.format} {list(scale.shape)}, expected F32 {list(wanted)}")
        found.add(name + SUFFIX)
    if problems:
        raise DataError(f"{folder}: FP8 weights in blocks of {block[0]} x {block[1]} need a scale for each: {'; '.join(problems[:4])}"
                        f"{f' and {len(problems) - 4} more' if len(problems) > 4 else ''}")
    return found


class Dequantiser:
    """Turns pieces of some rows and columns of one matrix into float32."""

    def __init__(self, scales: torch.Tensor, block: Block, start: int, columns: slice) -> None:
        """`scales` [bands, all columns / block columns]: the bands of blocks from that of row `start` on; `columns` of the matrix, with both ends."""
        self._rows, self._first = block[0], start // block[0]
        first = columns.start // block[1]
        wide = scales[:, first: -(-columns.stop // block[1])].repeat_interleave(block[1], 1)
        self._scales = wide[:, columns.start - first * block[1]: columns.stop - first * block[1]]

    def __call__(self, start: int, piece: torch.Tensor) -> torch.Tensor:
        """Rows from `start` on, these columns alone."""
        bands = torch.arange(start, start + piece.shape[0]) // self._rows - self._first
        return piece.float().mul_(self._scales[bands])
