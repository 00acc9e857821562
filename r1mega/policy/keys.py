"""The model's part of a sharded state, and whether a checkpoint's tensors are the ones this model has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.utils import nested_values
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from r1mega.errors import UserError
from r1mega.policy import storage

if TYPE_CHECKING:
    from r1mega.policy.policy import Policy

METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False,
            "chained_optim_avoid_prefix": True}
_NOT_MODEL = ("optimizer.", "sets.", "rng")


def model_state(policy: Policy, *, head: bool | None = None) -> dict[str, Any]:
    """Megatron's sharded state dict of every chunk: `model0`, `model1`, ...; the reward head is part of it where it is trained, or as `head` says."""
    head = policy.reward_head == "train" if head is None else head
    states = {f"model{index}": chunk.sharded_state_dict(prefix="", metadata=dict(METADATA)) for index, chunk in enumerate(policy.chunks)}
    return {name: {key: shard for key, shard in state.items() if head or not is_head(key)} for name, state in states.items()}


def is_mtp(key: str) -> bool:
    """Whether a tensor belongs to a multi-token-prediction layer."""
    return key.startswith("mtp.") or ".mtp." in key


def is_head(key: str) -> bool:
    """Whether a tensor belongs to the reward head."""
    return key.startswith("reward_head.")


def saved_tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """The model's tensors in a checkpoint: key -> shape of the whole tensor."""
    metadata = FileSystemReader(path).read_metadata()
    return {key: tuple(about.size) for key, about in sorted(metadata.state_dict_metadata.items())
            if isinstance(about, TensorStorageMetadata) and not key.startswith(_NOT_MODEL)}


def own_tensors(policy: Policy, *, head: bool | None = None) -> dict[str, tuple[int, ...]]:
    """The model's tensors over all ranks, in the same form. A collective."""
    state = model_state(policy, head=head)
    apply_factories(state)
    mine = {shard.key: tuple(shard.global_shape) for shard in nested_values(state) if isinstance(shard, ShardedTensor)}
    return {key: shape for part in storage.gather(policy.ranks, mine) for key, shape in part.items()}


def check_keys(policy: Policy, path: Path, *, mtp_optional: bool, head: bool | None = None) -> bool:
    """Compare names and shapes with a checkpoint's; returns whether MTP layers must be left out of the load. A collective.

    `head` as of `model_state`. Raises `UserError` naming what differs.
    """
    saved = storage.on_first_rank(policy.ranks, f"cannot read {path}", path, lambda: saved_tensors(path))
    own = own_tensors(policy, head=head)
    missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    without_mtp = mtp_optional and any(is_mtp(key) for key in missing)
    if mtp_optional:
        missing, extra = ([key for key in keys if not is_mtp(key)] for keys in (missing, extra))
    shapes = [f"{key} is {list(saved[key])} there and {list(own[key])} here" for key in sorted(own) if key in saved and own[key] != saved[key]]
    differences = {"it lacks": missing, "it has besides": extra, "shapes differ": shapes}
    problems = [f"{what}: {', '.join(items[:3])}{f' and {len(items) - 3} more' if len(items) > 3 else ''}"
                for what, items in differences.items() if items]
    if problems:
        raise UserError(f"the weights in {path} are of another model: {'; '.join(problems)}. Use the model configuration they were made with")
    return without_mtp
