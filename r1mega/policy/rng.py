"""The random states of a rank: Python's, numpy's, torch's, the device's and those of Megatron's tracker."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from megatron.core import tensor_parallel

from r1mega.policy.platform import Platform


def capture(platform: Platform) -> dict[str, Any]:
    """All states of this rank, made of plain values and tensors."""
    drawn: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, gauss = drawn
    states = {name: state.clone() for name, state in tensor_parallel.get_cuda_rng_tracker().get_states().items()}
    found: dict[str, Any] = {
        "python": random.getstate(), "numpy": (kind, keys.tolist(), position, has_gauss, gauss), "torch": torch.get_rng_state(),
        "tracker": states,
    }
    if platform.is_cuda:
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def restore(states: dict[str, Any], platform: Platform) -> None:
    """Continue from what `capture` returned."""
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if platform.is_cuda and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(states["tracker"])


def reseed(material: str, rank: int) -> None:
    """Start anew from `material`, for a layout on which no saved state fits: the same on every such start, and not the numbers drawn before."""
    def number(who: str) -> int:
        return int.from_bytes(hashlib.blake2b(f"{material}/{who}".encode(), digest_size=4).digest(), "big") >> 1

    random.seed(number(f"rank {rank}"))
    np.random.seed(number(f"rank {rank}"))
    torch.manual_seed(number(f"rank {rank}"))
    tensor_parallel.model_parallel_cuda_manual_seed(number("all ranks"))  # the tracker adds the ranks itself
