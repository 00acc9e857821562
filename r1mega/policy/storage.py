"""Writing a sharded state to a folder so that every rank succeeds or every rank is told why not.

Megatron's own writer of the `torch_dist` format starts one process per file and a manager process on every rank: seconds for a tiny model,
and a hang where such a process dies. Here Megatron's planner lays the state out as always and torch's file writer writes it in this process:
the same files, which Megatron reads as its own.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    determine_main_replica_uniform_distribution,
    distribute_main_replicas_with_precomputed_distribution,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.checkpoint.utils import _DistWrapper

from r1mega.errors import R1MegaError
from r1mega.policy.ranks import Ranks
from r1mega.recipe import files

CHECKSUMS = "checksums.json"
_COMMON = "common.pt"  # Megatron's name for what is not sharded
_NEARLY_FULL = 1 << 20  # bytes
_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------------------- success or failure, together


def on_every_rank(ranks: Ranks, what: str, folder: Path | None, action: Callable[[], T]) -> T:
    """`action` on every rank. If it raises on any, all ranks raise the error of the lowest one. A collective; `action` must not be one.

    `folder` is where it writes, if it does."""
    value, error = _attempt(action)
    failures = [failure for failure in gather(ranks, _portable(error, folder)) if failure]
    if failures:
        raise _failure(what, failures[0], error)
    return cast(T, value)


def on_first_rank(ranks: Ranks, what: str, folder: Path, action: Callable[[], T]) -> T:
    """`action` on rank 0; its value, or its error, on every rank. A collective; `action` must not be one and its value is small."""
    value, error = _attempt(action) if ranks.rank == 0 else (None, None)
    box: list[Any] = [(value, _portable(error, folder))]
    if ranks.world_size > 1:
        dist.broadcast_object_list(box, src=0, group=ranks.control)
    value, failure = box[0]
    if failure:
        raise _failure(what, failure, error)
    return cast(T, value)


def _attempt(action: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return action(), None
    except (Exception, CheckpointException) as error:
        return None, error


def gather(ranks: Ranks, value: T) -> list[T]:
    """Every rank's value, on every rank, in their order. A collective."""
    if ranks.world_size == 1:
        return [value]
    values: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(values, value, group=ranks.control)
    return values


@dataclass(frozen=True)
class _Portable:
    """An error as another rank can raise it again."""

    kind: type[R1MegaError]
    message: str
    storage: tuple[int, str, str] | None  # errno, its words, the file


def _portable(error: BaseException | None, folder: Path | None) -> _Portable | None:
    if error is None:
        return None
    if isinstance(error, R1MegaError):
        return _Portable(type(error), str(error), None)
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno in _STORAGE_ERRORS):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError):
        storage = (int(cause.errno or 0), str(cause.strerror), str(cause.filename or folder))
        return _Portable(R1MegaError, f"{storage[1]}: {storage[2]}", storage)
    there = folder and next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if there and shutil.disk_usage(there).free < _NEARLY_FULL:  # some writers hide why they failed
        storage = (errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        return _Portable(R1MegaError, f"{storage[1]}: {storage[2]}", storage)
    return _Portable(R1MegaError, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", None)


def _failure(what: str, failure: _Portable, mine: BaseException | None) -> R1MegaError:
    if failure.kind is not R1MegaError:  # it has already said all there is to say
        raise failure.kind(failure.message) from mine
    cause = OSError(*failure.storage) if failure.storage else mine
    raise R1MegaError(f"{what}: {failure.message}") from cause


# ------------------------------------------------------------------------------------------------------------------------------------- writing


class _Staged(MCoreSavePlanner):  # type: ignore[misc]
    """A planner whose data is already on the host: what the writing thread reads cannot change under it."""

    def stage(self, plan: Any, *, copy: bool) -> None:
        self._data = {item.index: _to_host(self.resolve_data(item), copy=copy) for item in plan.items}

    def resolve_data(self, write_item: Any) -> Any:
        staged = getattr(self, "_data", None)
        return super().resolve_data(write_item) if staged is None else staged[write_item.index]


def _to_host(data: Any, *, copy: bool) -> Any:
    if not isinstance(data, torch.Tensor):
        return data
    data = data.detach()
    part_of_more = data.untyped_storage().nbytes() != data.numel() * data.itemsize  # else the file would hold the whole storage
    return data.to("cpu", copy=copy or part_of_more)


def _share_out(sharded: dict[str, Any]) -> None:
    """Let data-parallel replicas, which hold the same shards, each write about as many bytes. A collective; only descriptions of shards travel."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    distribute_main_replicas_with_precomputed_distribution(sharded, group, determine_main_replica_uniform_distribution(sharded, group))


class Write:
    """One folder being written. After the constructor returned, the state may change (with `background`); `finish` completes the folder.

    The constructor and `finish` are collectives; between them only this rank's thread works, and it calls none.
    """

    def __init__(self, ranks: Ranks, folder: Path, state: dict[str, Any], *, validate: bool, background: bool) -> None:
        """`state` is a Megatron sharded state dict, `folder` exists and is empty. `validate` checks over all ranks that every shard has one
        owner."""
        self.ranks, self.folder = ranks, folder
        sharded, self._common = save_preprocess(state, validate)
        _share_out(sharded)
        renamed, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, True)
        self._planner = _Staged(dedup_replicated_tensors=False, flatten_state_dict=False)
        self._writer = FileSystemWriter(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
        self._together = _DistWrapper(ranks.control, True, 0)
        self._metadata: Any = None
        state_of_rank = mcore_to_pyt_state_dict(renamed, False)
        plan = self._checked(lambda: self._together.reduce_scatter("plan", lambda: self._plan(state_of_rank), self._plan_all))
        plan = self._planner.finish_plan(plan)
        self._planner.stage(plan, copy=background)
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint") if background else None
        self._work = self._pool.submit(self._write, plan) if self._pool else None
        self._now = None if self._work else plan

    def _plan(self, state: dict[str, Any]) -> Any:
        self._planner.set_up_planner(state, is_coordinator=self._together.is_coordinator)
        self._writer.set_up_storage_writer(self._together.is_coordinator)
        return self._writer.prepare_local_plan(self._planner.create_local_plan())

    def _plan_all(self, plans: list[Any]) -> list[Any]:
        plans, self._metadata = self._planner.create_global_plan(plans)
        return self._writer.prepare_global_plan(plans)

    def _write(self, plan: Any) -> tuple[Any, dict[str, str]]:
        results = self._writer.write_data(plan, self._planner).wait()
        return results, {path.name: files.file_digest(path) for path in sorted(self.folder.glob(f"__{self.ranks.rank}_*"))}

    @property
    def written(self) -> bool:
        """Whether this rank's own files are whole."""
        return self._work is None or self._work.done()

    def finish(self, texts: Mapping[str, str]) -> None:
        """Wait for all ranks' files, then add Megatron's metadata, `texts` (file name -> content) and the checksums; all flushed."""
        digests: dict[str, str] = {}

        def data() -> Any:
            results, found = self._work.result() if self._work else self._write(self._now)
            digests.update(found)
            return results

        try:
            self._checked(lambda: self._together.all_reduce("write", data, lambda results: self._writer.finish(self._metadata, results)))
        finally:
            if self._pool:
                self._pool.shutdown()
        of_all = {name: digest for part in gather(self.ranks, digests) for name, digest in part.items()}
        on_first_rank(self.ranks, f"cannot write {self.folder}", self.folder, lambda: self._complete(texts, of_all))

    def _complete(self, texts: Mapping[str, str], digests: dict[str, str]) -> None:
        with (self.folder / _COMMON).open("wb") as file:
            torch.save(self._common, file)
        save_config(CheckpointingConfig("torch_dist", 1), str(self.folder))
        for name, text in texts.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        for path in sorted(self.folder.iterdir()):
            if path.name not in digests:
                digests[path.name] = files.file_digest(path)
                files.sync(path)
        (self.folder / CHECKSUMS).write_text(json.dumps(dict(sorted(digests.items())), indent=2) + "\n", encoding="utf-8")
        files.sync(self.folder / CHECKSUMS)
        files.sync(self.folder)

    def _checked(self, action: Callable[[], T]) -> T:
        """A collective of torch's, which raises on every rank; in our words."""
        try:
            return action()
        except CheckpointException as error:
            failure = _portable(error, self.folder)
            assert failure is not None
            raise _failure(f"cannot write {self.folder}", failure, error) from error


# ----------------------------------------------------------------------------------------------------------------------------------- verifying


def find_damage(ranks: Ranks, folder: Path) -> str | None:
    """What is wrong with a finished folder, naming the file, or None; the same on every rank. The ranks share the reading. A collective."""
    def manifest() -> tuple[dict[str, str], str | None]:
        path = folder / CHECKSUMS
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): str(digest) for name, digest in listed.items()}, None
        except FileNotFoundError:
            return {}, f"{path} is missing"
        except (ValueError, AttributeError, OSError) as error:
            return {}, f"{path} cannot be read ({error})"

    listed, problem = on_first_rank(ranks, f"cannot read {folder}", folder, manifest)
    if problem:
        return problem
    mine = sorted(listed)[ranks.rank::ranks.world_size]
    found = [_damage(folder / name, listed[name]) for name in mine]
    return next((damage for part in gather(ranks, found) for damage in part if damage), None)


def _damage(path: Path, digest: str) -> str | None:
    try:
        return None if files.file_digest(path) == digest else f"{path} is damaged: its SHA-256 is not the one in {CHECKSUMS}"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"


def tensor_digests(ranks: Ranks, folder: Path, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the type, shape and bytes of each whole tensor in a finished folder, by name. Every rank gives the names it is to read, and
    gets the digests of all. A collective."""
    def read() -> dict[str, str]:
        reader = FileSystemReader(folder)
        about = reader.read_metadata().state_dict_metadata
        found = {}
        for name in names:
            stored = about[name]
            assert isinstance(stored, TensorStorageMetadata)
            tensor = torch.empty(stored.size, dtype=stored.properties.dtype)
            _load_state_dict({name: tensor}, reader, no_dist=True)
            digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
            found[name] = digest.hexdigest()
        return found

    mine = on_every_rank(ranks, f"cannot read {folder}", folder, read)
    return {name: digest for part in gather(ranks, mine) for name, digest in part.items()}


# ------------------------------------------------------------------------------------------------------------------- folders, whole or absent


def fresh_folder(final: Path, leftovers: str, before: Callable[[], None]) -> Path:
    """An empty temporary folder beside `final`. What earlier attempts left there (by glob) is removed, after `before` has agreed. On rank 0."""
    before()
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(leftovers):
        shutil.rmtree(left, ignore_errors=True)
    temporary = final.with_name(f"{final.name}.tmp-{secrets.token_hex(4)}")
    temporary.mkdir()
    return temporary


def put_in_place(temporary: Path, final: Path, before: Callable[[], None]) -> None:
    """Rename `temporary` to `final`, whose old content goes, after `before` has agreed. On rank 0."""
    before()
    replaced = final.with_name(f"{final.name}.tmp-replaced")
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    files.sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def removed_on_error(ranks: Ranks, temporary: Path) -> Iterator[None]:
    """Rank 0 removes a temporary folder when writing it failed, which all ranks notice together."""
    try:
        yield
    except BaseException:
        if ranks.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
