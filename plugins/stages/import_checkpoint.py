"""Take a checkpoint that another run has made: where a recipe begins with a trained base.

The artifact shares its blocks with the source, since a model of the paper's size has a terabyte. Where the file system has clones (Btrfs, XFS) the
two are independent all the same. Elsewhere each file is a hard link: r1mega replaces files and never writes into one, but whoever else edits the
source in place edits the artifact too. That does not go unnoticed: every stage that reads the artifact compares all its bytes first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from r1mega import hookimpl
from r1mega.errors import ConfigError, DataError
from r1mega.hookspecs import Register
from r1mega.recipe import files
from r1mega.recipe.context import StageContext

from ._publish import publish

_CLONE = 0x40049409  # ioctl FICLONE of Linux: the target's blocks become the source's until one of them is written
NEEDED = ("architecture.json", "checksums.json", "content.sha256", "tokenizer")


@dataclass(frozen=True)
class ImportConfig:
    """Where it lies."""

    required_paths: ClassVar[tuple[str, ...]] = ("path",)
    path: str = ""  # the checkpoint artifact of a run: RUN_DIR/stages/<name>/current/artifacts/checkpoint; no default


class Import:
    """Brings in a checkpoint artifact of another run, checked file by file."""

    version: ClassVar[str] = "1"
    inputs: ClassVar[Mapping[str, str]] = {}
    outputs: ClassVar[Mapping[str, str]] = {"checkpoint": "Checkpoint"}

    def __init__(self, config: ImportConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Clone or link (or, on another file system, copy) the artifact's files. Raises `DataError` for a folder that is none, or a damaged file."""
        if not self.config.path:
            raise ConfigError(f"stages.{context.name}.path must name the checkpoint to begin with: "
                              "RUN_DIR/stages/<name>/current/artifacts/checkpoint of an earlier run")
        if context.rank:
            return {}
        source = Path(self.config.path).resolve()
        bytes_read = _check(source)
        publish(context, "checkpoint", lambda folder: shutil.copytree(source, folder, copy_function=_bring, dirs_exist_ok=True))
        return {"bytes": bytes_read, "from": str(source)}


def _check(source: Path) -> int:
    """Bytes of the files that have a checksum, each compared with it: the weights, the tokenizer, a reward model's card."""
    missing = [name for name in NEEDED if not (source / name).exists()]
    if missing and (source / "config.json").is_file():
        raise DataError(f"{source} is a Hugging Face folder; this stage takes checkpoint artifacts: choose stages.<name>.stage=import_hf")
    if missing:
        raise DataError(f"{source} is no checkpoint artifact: it has no {', '.join(missing)}; name the folder artifacts/checkpoint of a finished stage")
    recorded: Mapping[str, str] = files.read_json(source / "checksums.json")
    total = 0
    for name, digest in recorded.items():
        path = source / name
        if not path.is_file() or files.file_digest(path) != digest:
            raise DataError(f"{path} {'is damaged' if path.is_file() else 'is missing'} (SHA-256 against {source / 'checksums.json'})")
        total += path.stat().st_size
    return total


def _bring(source: str, target: str) -> None:
    """Clone a file; link it where it cannot be cloned; copy it where it cannot be linked."""
    if _cloned(source, target):
        return
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
    files.sync(Path(target))


def _cloned(source: str, target: str) -> bool:
    with open(source, "rb") as there, open(target, "wb") as here:
        try:
            fcntl.ioctl(here.fileno(), _CLONE, there.fileno())
        except OSError:  # another file system, or one without clones
            os.unlink(target)
            return False
        os.fsync(here.fileno())
    return True


@hookimpl
def register_stages(register: Register) -> None:
    register("import", Import, config=ImportConfig)
