"""Checkpoints of a policy: everything a stage needs to continue, in Megatron's distributed format, readable on any layout.

    FOLDER/step_00000010/  __<rank>_0.distcp  .metadata  common.pt  metadata.json    Megatron's: weights, optimizer, random states, weight sets
                           state.json                                              step, version, scheduler, layout, the caller's `extra`
                           checksums.json                                          SHA-256 of every file above

A folder of that name is whole: it is written under a temporary name, flushed, and renamed. All functions are collectives.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject

from r1mega.errors import R1MegaError, UserError
from r1mega.policy import rng, storage
from r1mega.policy.keys import check_keys, is_mtp, model_state
from r1mega.policy.layout import expert_tensor_parallel_size
from r1mega.policy.optimizer_state import load_optimizer, optimizer_state, optimizer_step
from r1mega.policy.weights import WeightSets
from r1mega.recipe import files

if TYPE_CHECKING:
    from r1mega.policy.policy import Policy

STATE = "state.json"
_NAME = re.compile(r"step_(\d{8,})")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedState:
    """What a checkpoint held besides the policy."""

    step: int
    extra: Mapping[str, Any]  # as JSON gives it back: tuples are lists, keys are strings
    path: Path
    skipped: tuple[str, ...] = ()  # newer checkpoints that were damaged, each with what is wrong


class PendingSave:
    """A checkpoint under way. Training may go on; `finish` names the folder. At most one per policy at a time."""

    def __init__(self, policy: Policy, write: storage.Write, texts: Mapping[str, str], publish: Callable[[], Path]) -> None:
        self._policy, self._write, self._texts, self._publish = policy, write, texts, publish

    def ready(self) -> bool:
        """Whether every rank has written its files, so that `finish` does not wait. A collective."""
        return self._policy.ranks.max_over_ranks(0.0 if self._write.written else 1.0) == 0.0

    def finish(self) -> Path:
        """Complete the checkpoint, remove those beyond `keep_last`, and return its folder. A collective."""
        ranks, temporary = self._policy.ranks, self._write.folder
        with storage.removed_on_error(ranks, temporary):
            self._write.finish(self._texts)
            return storage.on_first_rank(ranks, f"cannot save {temporary}", temporary, self._publish)


def save(policy: Policy, folder: Path, step: int, extra: Mapping[str, Any], *, keep_last: int, before_rename: Callable[[], None],
         sets: WeightSets | None = None) -> Path:
    """Write `folder/step_<8 digits>`, then remove all but the newest `keep_last`. Returns its path.

    `extra` is data that JSON can hold. `before_rename` runs on rank 0 before anything that exists is touched and raises if this attempt has
    been superseded. On any error (full disk) every rank raises `R1MegaError`, the temporary folder is gone and older checkpoints are as they
    were.
    """
    return begin_save(policy, folder, step, extra, keep_last=keep_last, before_rename=before_rename, sets=sets, background=False).finish()


def begin_save(policy: Policy, folder: Path, step: int, extra: Mapping[str, Any], *, keep_last: int, before_rename: Callable[[], None],
               sets: WeightSets | None = None, background: bool = True) -> PendingSave:
    """`save` in two halves: this one copies the state to host memory and returns; a thread writes it; `PendingSave.finish` completes it."""
    if policy.foreign_weights is not None:
        raise R1MegaError(f"cannot save while weight set '{policy.foreign_weights}' stands in for the weights")
    final = folder / f"step_{step:08d}"
    temporary = storage.on_first_rank(policy.ranks, f"cannot save {final}", folder,
                                      lambda: storage.fresh_folder(final, "step_*.tmp-*", before_rename))
    texts = {STATE: json.dumps(_describe(policy, step, extra, sets), indent=2) + "\n"}
    with storage.removed_on_error(policy.ranks, temporary):
        write = storage.Write(policy.ranks, temporary, _whole_state(policy, sets), validate=not policy.sharding_checked,
                              background=background)
    policy.sharding_checked = True
    return PendingSave(policy, write, texts, lambda: _publish(temporary, final, keep_last, before_rename))


def load_latest(policy: Policy, folder: Path, sets: WeightSets | None = None) -> LoadedState | None:
    """Continue from the newest whole checkpoint in `folder`; None where there is none at all.

    A damaged one is reported (a warning that names the file and what is wrong, also in `LoadedState.skipped`) and the one before is taken.
    Raises `R1MegaError` when all are damaged.
    """
    found = storage.on_first_rank(policy.ranks, f"cannot read {folder}", folder, lambda: list(reversed(_checkpoints(folder))))
    skipped: list[str] = []
    for path in found:
        damage = storage.find_damage(policy.ranks, path)
        if damage is None:
            return replace(load(policy, path, sets, verify=False), skipped=tuple(skipped))
        skipped.append(damage)
        if policy.ranks.rank == 0:
            _log.warning("checkpoint %s is damaged and is passed over: %s", path, damage)
    if found:
        raise R1MegaError(f"every checkpoint in {folder} is damaged: {'; '.join(skipped)}; remove them to begin this stage anew")
    return None


def load(policy: Policy, path: Path, sets: WeightSets | None = None, *, weights_only: bool = False, strict_rng: bool = False,
         mtp_optional: bool = False, verify: bool = True) -> LoadedState:
    """Load the checkpoint at `path` into this policy, whatever layout wrote it.

    `weights_only` takes the model's weights alone, for another optimizer or none; with `mtp_optional` multi-token-prediction layers may be on
    one side only. Random states are restored on the layout that saved them; on another they are seeded anew from the checkpoint, or with
    `strict_rng` it is an error. With `sets`, the saved weight sets come back too. Raises `UserError` when the weights do not fit this model,
    `R1MegaError` for a damaged folder.
    """
    if verify and (damage := storage.find_damage(policy.ranks, path)):
        raise R1MegaError(f"checkpoint {path} is damaged: {damage}")
    about = storage.on_first_rank(policy.ranks, f"cannot read {path}", path, lambda: files.read_json(path / STATE))
    if weights_only:
        load_weights(policy, path, mtp_optional=mtp_optional)
        return LoadedState(about["step"], about["extra"], path)
    check_keys(policy, path, mtp_optional=False)
    same_layout = about["layout"] == _layout(policy)
    if strict_rng and not same_layout:
        raise R1MegaError(f"{path} was saved on the layout {about['layout']}; its random states do not fit {_layout(policy)}")
    names = about["sets"] if sets is not None else []
    state: dict[str, Any] = model_state(policy)
    if policy.optimizer is not None:
        _check_optimizer(policy, path, about)
        state["optimizer"] = optimizer_state(policy, state, loading=True)
    if same_layout:
        state["rng"] = _rng_shard(policy, None)
    if sets is not None:
        state["sets"] = {name: sets.sharded_state(name, new=True) for name in names}
    loaded = _read(state, path)
    _take_model(policy, loaded, strict=True)
    if policy.optimizer is not None:
        load_optimizer(policy, loaded["optimizer"], about["optimizer_step"])
        assert policy.scheduler is not None
        policy.scheduler.load_state_dict(about["scheduler"])
    for name in names:
        assert sets is not None
        sets.load(name, loaded["sets"][name])
    policy.version, policy.skipped_updates = about["version"], about.get("skipped_updates", 0)
    if same_layout:
        rng.restore(loaded["rng"], policy.platform)
    else:
        rng.reseed(about["seed"], policy.ranks.rank)
    return LoadedState(about["step"], about["extra"], path)


def load_weights(policy: Policy, path: Path, *, mtp_optional: bool = False, head: bool | None = None, optimizer: bool = True) -> None:
    """Load the model's weights from a checkpoint or artifact; the optimizer's own copies follow, unless `optimizer` is false. `head`: whether the
    reward head is among them (`keys.model_state`)."""
    without = check_keys(policy, path, mtp_optional=mtp_optional, head=head)
    state = model_state(policy, head=head)
    if without:
        state = {name: {key: value for key, value in chunk.items() if not is_mtp(key)} for name, chunk in state.items()}
    _take_model(policy, _read(state, path), strict=not without and head is None)
    if optimizer and policy.optimizer is not None:
        policy.optimizer.reload_model_params()


# --------------------------------------------------------------------------------------------------------------------------------- the state


def _whole_state(policy: Policy, sets: WeightSets | None) -> dict[str, Any]:
    state: dict[str, Any] = model_state(policy)
    if policy.optimizer is not None:
        state["optimizer"] = optimizer_state(policy, state, loading=False)
    state["rng"] = _rng_shard(policy, rng.capture(policy.platform))
    state["sets"] = {name: sets.sharded_state(name) for name in sets.names()} if sets is not None else {}
    return state


def _rng_shard(policy: Policy, states: dict[str, Any] | None) -> ShardedObject:
    return ShardedObject("rng", states, (policy.ranks.world_size,), (policy.ranks.rank,))


def _layout(policy: Policy) -> dict[str, int | None]:
    p = policy.parallel
    return {"world_size": policy.ranks.world_size, "tp": p.tensor_model_parallel_size, "pp": p.pipeline_model_parallel_size,
            "vp": p.virtual_pipeline_model_parallel_size, "cp": p.context_parallel_size, "ep": p.expert_model_parallel_size,
            "etp": expert_tensor_parallel_size(p)}


def _describe(policy: Policy, step: int, extra: Mapping[str, Any], sets: WeightSets | None) -> dict[str, Any]:
    optimizer, scheduler = policy.optimizer, policy.scheduler
    return {"step": step, "version": policy.version, "skipped_updates": policy.skipped_updates, "layout": _layout(policy),
            "sets": sets.names() if sets is not None else [],
            "optimizer": _optimizer_name(policy), "optimizer_step": optimizer_step(policy) if optimizer is not None else 0,
            "scheduler": scheduler.state_dict() if scheduler is not None else None,
            "seed": f"{int(torch.get_rng_state().sum())}/{policy.version}", "extra": dict(extra)}


def _optimizer_name(policy: Policy) -> str | None:
    return str(policy.optimizer.config.optimizer) if policy.optimizer is not None else None


def _check_optimizer(policy: Policy, path: Path, about: Mapping[str, Any]) -> None:
    if about["optimizer"] != _optimizer_name(policy):
        raise UserError(f"{path} holds the state of optimizer '{about['optimizer']}', this stage has "
                        f"optimizer.optimizer={_optimizer_name(policy)}; a stage continues with the optimizer it began with")


def _read(state: dict[str, Any], path: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Megatron calls torch by names that torch has renamed
        warnings.simplefilter("ignore", UserWarning)
        return dict(dist_checkpointing.load(state, str(path)))


def _take_model(policy: Policy, loaded: dict[str, Any], *, strict: bool) -> None:
    for index, chunk in enumerate(policy.chunks):
        chunk.load_state_dict(loaded[f"model{index}"], strict=strict and policy.reward_head != "score")


# -------------------------------------------------------------------------------------------------------------------------------- the folder


def _checkpoints(folder: Path) -> list[Path]:
    """Those in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]))


def _publish(temporary: Path, final: Path, keep_last: int, before: Callable[[], None]) -> Path:
    """Rename, then remove older checkpoints, and newer ones too: they were passed over as damaged when this run resumed."""
    storage.put_in_place(temporary, final, before)
    found = _checkpoints(final.parent)
    kept = found[:found.index(final) + 1][-max(1, keep_last):]
    for path in found:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
    return final
