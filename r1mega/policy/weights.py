"""Named copies of the policy's weights in host memory, on the same shards: a reference policy, an earlier version, an average.

Parameters are views into the data-parallel buffers and the optimizer holds views of them, so weights are exchanged by copying in place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedBase

from r1mega.errors import R1MegaError, nearest

if TYPE_CHECKING:
    from r1mega.policy.policy import Policy

Copy = list[dict[str, torch.Tensor]]  # of each chunk: name in its state dict -> tensor in host memory


class WeightSets:
    """The sets of one policy. Every rank does the same calls; none of them is a collective."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._sets: dict[str, Copy] = {}

    def names(self) -> list[str]:
        """The sets there are, in the order of their capture."""
        return list(self._sets)

    def capture(self, name: str) -> None:
        """Copy the current parameters and persistent buffers (the expert bias) to host memory, replacing a set of that name."""
        self._refuse_foreign(f"capture weight set '{name}'")
        self._sets[name] = self._copy_of_live()

    def load_artifact(self, name: str, folder: Path) -> None:
        """Make a set of an artifact's weights, such as a reward model's, head included. A collective. Errors as of `artifact.load_artifact`."""
        from r1mega.policy import artifact

        self._refuse_foreign(f"load weight set '{name}'")
        current = self._copy_of_live()
        try:
            artifact.load_artifact(self.policy, folder, head=self.policy.reward_head != "none", optimizer=False)
            self._sets[name] = self._copy_of_live()
        finally:
            self._copy_in(current)

    def drop(self, name: str) -> None:
        """Free a set's memory."""
        self._find(name)
        if self.policy.foreign_weights == name:
            raise R1MegaError(f"weight set '{name}' is in use and cannot be dropped")
        del self._sets[name]

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[None]:
        """The policy with a set's weights, for scoring and generating. After the block the current weights are back, bit for bit."""
        weights = self._find(name)
        self._refuse_foreign(f"use weight set '{name}'")
        current = self._copy_of_live()
        self.policy.foreign_weights = name
        try:
            self._copy_in(weights)
            yield
        finally:
            self._copy_in(current)
            self.policy.foreign_weights = None

    # --------------------------------------------------------------------------------------------------------------------------- checkpoints

    def sharded_state(self, name: str, *, new: bool = False) -> dict[str, Any]:
        """A set as a Megatron sharded state dict with keys `sets.<name>.<key>`. With `new` the set is made first, its values to be loaded."""
        if new:
            self._sets[name] = self._copy_of_live()
        weights = self._find(name)
        state: dict[str, Any] = {}
        for index, chunk in enumerate(self.policy.chunks):
            for key, shard in chunk.sharded_state_dict(prefix="", metadata={}).items():
                if isinstance(shard, ShardedBase) and isinstance(shard.data, torch.Tensor):
                    shard.key, shard.data = f"sets.{name}.{shard.key}", weights[index][key]
                    state[f"{index}/{key}"] = shard
        return state

    def load(self, name: str, loaded: dict[str, torch.Tensor]) -> None:
        """Take the values that were loaded for `sharded_state(name, new=True)`."""
        weights = self._find(name)
        for where, value in loaded.items():
            index, key = where.split("/", 1)
            weights[int(index)][key].copy_(value)

    # ------------------------------------------------------------------------------------------------------------------------------- the parts

    def _live(self) -> Copy:
        return [{name: tensor for name, tensor in chunk.state_dict(keep_vars=True).items() if isinstance(tensor, torch.Tensor)}
                for chunk in self.policy.chunks]

    def _copy_of_live(self) -> Copy:
        pin = self.policy.platform.is_cuda
        with torch.no_grad():
            copies = [{name: torch.empty_like(tensor, device="cpu", pin_memory=pin, requires_grad=False).copy_(tensor, non_blocking=pin)
                       for name, tensor in chunk.items()} for chunk in self._live()]
        if pin:
            torch.cuda.synchronize()
        return copies

    def _copy_in(self, weights: Copy) -> None:
        pin = self.policy.platform.is_cuda
        with torch.no_grad():
            for live, copy in zip(self._live(), weights, strict=True):
                for name, tensor in live.items():
                    tensor.copy_(copy[name], non_blocking=pin)
        if pin:
            torch.cuda.synchronize()

    def _find(self, name: str) -> Copy:
        if name not in self._sets:
            raise R1MegaError(f"no weight set '{name}'; there are: {', '.join(self._sets) or 'none'}.{nearest(name, self._sets)}")
        return self._sets[name]

    def _refuse_foreign(self, what: str) -> None:
        if self.policy.foreign_weights is not None:
            raise R1MegaError(f"cannot {what} while weight set '{self.policy.foreign_weights}' is in use")
