"""Initial weights that depend on the seed and not on the layout: each tensor is drawn whole from a generator of its own and sliced.

Megatron's own initialization draws from per-rank random states, so a run on two ranks starts from another model than a run on one.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.utils import nested_values

from r1mega.policy.model import PolicyModel

MAX_ELEMENTS = 2**28  # of one whole tensor; beyond it drawing whole tensors on every rank is no longer sensible: Megatron's values stay, if it drew any
BLOCK = 2**22  # numbers that are drawn at a time


@contextlib.contextmanager
def drawn_later() -> Iterator[None]:
    """While a model is built whose weights Megatron draws on the CPU, it only marks them as sharded, and `initialize_weights` draws all of them.

    Megatron would draw each weight whole, in float32, on every rank, and hold two more copies of it while it takes the rank's slice.
    """
    layers = tensor_parallel.layers
    original = layers._initialize_affine_weight_cpu
    layers._initialize_affine_weight_cpu = _mark
    try:
        yield
    finally:
        layers._initialize_affine_weight_cpu = original


def _mark(weight: torch.Tensor, output_size: int, input_size: int, per_partition_size: int, partition_dim: int, init_method: Any, stride: int = 1,
          **others: Any) -> None:
    del output_size, input_size, per_partition_size, init_method, others
    tensor_parallel.set_tensor_model_parallel_attributes(tensor=weight, is_parallel=True, dim=partition_dim, stride=stride)


def initialize_weights(chunks: list[PolicyModel], seed: int) -> None:
    """Draw every weight matrix of these chunks anew; norms, biases and buffers keep their constants. In place."""
    for chunk in chunks:
        sharded = chunk.sharded_state_dict(prefix="", metadata={})
        apply_factories(sharded)
        config = chunk.config
        output_std = config.init_method_std / math.sqrt(2.0 * config.num_layers)
        for tensor in nested_values(sharded):
            if isinstance(tensor, ShardedTensor) and tensor.data is not None and _is_drawn(tensor, config):
                std = output_std if tensor.key.endswith(("linear_proj.weight", "linear_fc2.weight")) else config.init_method_std
                _draw(tensor, std, seed)


def _is_drawn(tensor: ShardedTensor, config: Any) -> bool:
    if tensor.data.dim() != 2 or not tensor.data.is_floating_point():
        return False
    return bool(config.use_cpu_initialization) or math.prod(_whole_shape(tensor)) <= MAX_ELEMENTS


def _whole_shape(tensor: ShardedTensor) -> tuple[int, ...]:
    return tuple(tensor.global_shape[tensor.prepend_axis_num:])


@torch.no_grad()
def _draw(tensor: ShardedTensor, std: float, seed: int) -> None:
    before = tensor.prepend_axis_num  # leading axes count layers and experts: each is a tensor of its own
    name = f"{seed}/{tensor.key}/{tuple(tensor.global_offset[:before])}"
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big"))
    rows, width = _whole_shape(tensor)
    start, columns = tensor.global_offset[before], slice(tensor.global_offset[before + 1], tensor.global_offset[before + 1] + tensor.local_shape[1])
    stop = start + tensor.local_shape[0]
    # torch draws in sixteens: in blocks of a multiple, and a last one that is no shorter, it gives what it gives for the whole
    step = max(16, BLOCK // width // 16 * 16) if width >= 16 else rows
    for first in range(0, rows, step):
        block = torch.randn((min(step, rows - first), width), generator=generator).mul_(std)
        low, high = max(first, start), min(first + len(block), stop)
        if low < high:
            tensor.data[low - start: high - start].copy_(block[low - first: high - first, columns])
        if high == stop:
            break
