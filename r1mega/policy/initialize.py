"""Initial weights that depend on the seed and not on the layout: each tensor is drawn whole from a generator of its own and sliced.

Megatron's own initialization draws from per-rank random states, so a run on two ranks starts from another model than a run on one.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.utils import nested_values

from r1mega.policy.model import PolicyModel

MAX_ELEMENTS = 2**28  # of one whole tensor; beyond it drawing whole tensors on every rank is no longer sensible and Megatron's values stay


def initialize_weights(chunks: list[PolicyModel], seed: int) -> None:
    """Draw every weight matrix of these chunks anew; norms, biases and buffers keep their constants. In place."""
    for chunk in chunks:
        sharded = chunk.sharded_state_dict(prefix="", metadata={})
        apply_factories(sharded)
        config = chunk.config
        output_std = config.init_method_std / math.sqrt(2.0 * config.num_layers)
        for tensor in nested_values(sharded):
            if isinstance(tensor, ShardedTensor) and tensor.data is not None and _is_matrix(tensor):
                std = output_std if tensor.key.endswith(("linear_proj.weight", "linear_fc2.weight")) else config.init_method_std
                _draw(tensor, std, seed)


def _is_matrix(tensor: ShardedTensor) -> bool:
    return tensor.data.dim() == 2 and tensor.data.is_floating_point() and math.prod(_whole_shape(tensor)) <= MAX_ELEMENTS


def _whole_shape(tensor: ShardedTensor) -> tuple[int, ...]:
    return tuple(tensor.global_shape[tensor.prepend_axis_num:])


@torch.no_grad()
def _draw(tensor: ShardedTensor, std: float, seed: int) -> None:
    before = tensor.prepend_axis_num  # leading axes count layers and experts: each is a tensor of its own
    name = f"{seed}/{tensor.key}/{tuple(tensor.global_offset[:before])}"
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big"))
    whole = torch.randn(_whole_shape(tensor), generator=generator).mul_(std)
    index: list[Any] = [slice(start, start + size) for start, size in zip(tensor.global_offset[before:], tensor.local_shape, strict=True)]
    tensor.data.copy_(whole[tuple(index)])
