"""The durable bank of finished rollouts: what is committed is never generated again, whatever dies.

A step's rollouts, and an evaluation's samples, are cut into units fixed by the settings and the layout. A unit with its rewards is one file,
`replica_<r>/step_<s>/unit_<u>.bank`, that is there whole or not at all: written under a temporary name, flushed to the disk, renamed, and the folder
flushed too.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from r1mega.errors import R1MegaError, UserError
from r1mega.recipe import files
from r1mega.rollout.codec import CorruptUnitError, UnitPayload, decode, encode
from r1mega.types import ScoredGroup

if TYPE_CHECKING:
    from r1mega.rollout.collect import WorkItem

log = logging.getLogger(__name__)

_UNIT = re.compile(r"unit_(\d+)\.bank")
_STEP = re.compile(r"step_(\d+)")


class AllRanks(Protocol):
    """What `Ledger.load_together` needs of `policy.ranks.Ranks`."""

    def max_over_ranks(self, value: float) -> float: ...


class Ledger:
    """One data-parallel replica's shard. Exactly one rank of the replica commits; any rank may load.

    `before_rename` is called just before a unit gets its name (`StageContext.check_epoch`): if it raises, nothing is committed.
    """

    def __init__(self, folder: Path, replica: int, before_rename: Callable[[], None] = lambda: None) -> None:
        self.folder = Path(folder) / f"replica_{replica:05d}"
        self._before_rename = before_rename

    def commit(self, step: int, unit: int, payload: Sequence[ScoredGroup]) -> None:
        """Bank a unit; on return it survives a power cut. A unit committed before is replaced.

        Raises `R1MegaError` when the disk is full or fails, `UserError` when the folder cannot be written; no partial file stays.
        """
        path = self._path(step, unit)
        data = encode(payload)
        try:
            files.make_folder(path.parent)
            files.write_bytes(path, data, self._before_rename)
        except OSError as error:
            raise _explain(error, path, len(data)) from error

    def load(self, step: int, unit: int) -> UnitPayload | None:
        """The unit as it was committed; None if it never was, or, with a warning in the log, if its file is damaged."""
        path = self._path(step, unit)
        try:
            return decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except CorruptUnitError as error:
            log.warning("%s: damaged: %s; unit %d of step %d will be generated again", path, error, unit, step)
            return None

    def load_together(self, step: int, unit: int, items: Sequence[WorkItem], samples: int, ranks: AllRanks) -> UnitPayload | None:
        """The unit, if every replica has banked its own: `samples` samples of each of its `items`. Replicas generate a unit together or not at all.

        A unit of other prompts or other samples, banked before the settings or the layout were what they are now, counts as missing. A collective.
        """
        banked = self.load(step, unit)
        wanted = [(item.prompt.tokens, [item.sample_id(k) for k in range(samples)]) for item in items]
        if banked is not None and [(group.group.prompt.tokens, [made.id for made in group.group.completions]) for group in banked] != wanted:
            banked = None
        return None if ranks.max_over_ranks(float(banked is None)) else banked

    def units(self, step: int) -> list[int]:
        """The units of `step` that have a file, ascending. One of them may still turn out damaged when loaded."""
        return sorted(int(match[1]) for name in _names(self._path(step, 0).parent) if (match := _UNIT.fullmatch(name)))

    def forget_before(self, step: int) -> None:
        """Remove all units of earlier steps, and files that a killed process left half written."""
        for name in _names(self.folder):
            match = _STEP.fullmatch(name)
            if match and int(match[1]) < step:
                shutil.rmtree(self.folder / name)
            elif match:
                for leftover in (self.folder / name).glob(".unit_*.tmp"):
                    leftover.unlink(missing_ok=True)

    def _path(self, step: int, unit: int) -> Path:
        return self.folder / f"step_{step:08d}" / f"unit_{unit:06d}.bank"


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _explain(error: OSError, path: Path, size: int) -> R1MegaError:
    what = f"cannot bank rollouts in {path} ({size} bytes): {error.strerror}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{what}. Make the run folder writable or choose another output_dir")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return R1MegaError(f"{what}. Free space there and run the same command again: committed units are kept and not generated again")
    return R1MegaError(f"{what}. Run the same command again once the disk works: committed units are kept")
