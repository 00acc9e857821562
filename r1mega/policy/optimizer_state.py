"""The optimizer's part of a sharded state.

Of a distributed optimizer only what has a value per weight is saved, under the weight's name, and the step: the rest (learning rate, decay, how
many optimizers the layout splits it into) follows from the configuration, the scheduler and the layout at hand.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from r1mega.policy.keys import METADATA
from r1mega.policy.platform import building_on_cpu

if TYPE_CHECKING:
    from r1mega.policy.policy import Policy

_ADAM = (torch.optim.Adam, torch.optim.AdamW)


def optimizer_state(policy: Policy, model: dict[str, Any], *, loading: bool) -> dict[str, Any]:
    """Megatron's sharded state dict of each optimizer part: `{"0": ..., "1": ...}`; `model` is the model's, made in the same breath."""
    state = {}
    with _no_garbage(), building_on_cpu(policy.platform):
        for index, part in enumerate(_parts(policy.optimizer)):
            _allocate(part)
            whole = part.sharded_state_dict(model, is_loading=loading, metadata=dict(METADATA))
            state[str(index)] = {"param_state": whole["param_state"]} if isinstance(part, DistributedOptimizer) else whole
    return state


def load_optimizer(policy: Policy, loaded: dict[str, Any], step: int) -> None:
    """Take what was loaded for `optimizer_state(..., loading=True)`; `step` is `optimizer_step` as it was saved."""
    for index, part in enumerate(_parts(policy.optimizer)):
        state = loaded[str(index)]
        if not isinstance(part, DistributedOptimizer):
            part.load_state_dict(state)
            continue
        own = part.state_dict()
        for group in own["optimizer"]["param_groups"]:
            group["step"] = step
        part.load_state_dict(own)
        per_weight = part.optimizer.state.values() if isinstance(part.optimizer, _ADAM) else []
        for values in per_weight:  # Megatron's loader expects tensors of the weight's size only
            del values["step"]
        part.load_parameter_state_from_fully_reshardable(state["param_state"])
        for values in per_weight:  # a tensor each: torch counts them up in place
            values["step"] = torch.tensor(float(step))


def optimizer_step(policy: Policy) -> int:
    """How many updates Adam has made; its bias correction needs it. A collective."""
    steps = [0.0]
    for part in _parts(policy.optimizer):
        inner = getattr(part, "optimizer", None)
        if inner is not None:
            steps += [float(values["step"]) for values in inner.state.values() if "step" in values]
            steps += [float(group["step"]) for group in inner.param_groups if group.get("step") is not None and not isinstance(inner, _ADAM)]
    return int(policy.ranks.max_over_ranks(max(steps)))


def _parts(optimizer: Any) -> list[Any]:
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _allocate(part: Any) -> None:
    """Give torch's Adam the state that its first step would make: Megatron describes and loads a state only where there is one."""
    inner = getattr(part, "optimizer", None)
    if getattr(part, "init_state_fn", _nothing) is None:  # plain SGD keeps no state; Megatron calls this all the same
        part.init_state_fn = _nothing
    if isinstance(inner, _ADAM):
        for group in inner.param_groups:
            for parameter in group["params"]:
                if not inner.state[parameter]:
                    inner.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter),
                                              "exp_avg_sq": torch.zeros_like(parameter)}


def _nothing(*arguments: object) -> None:
    del arguments


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Megatron collects garbage while it describes its optimizer, longer than all the rest of saving a small model takes: leave it nothing to
    visit."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
