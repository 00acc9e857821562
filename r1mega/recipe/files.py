"""Files that are whole or absent: atomic writes and symlinks, and content digests."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from r1mega.errors import DataError, UserError


def write_bytes(path: Path, data: bytes, before_rename: Callable[[], None] = lambda: None) -> None:
    """`write_parts` of one part."""
    write_parts(path, (data,), before_rename)


def write_parts(path: Path, parts: Iterable[bytes], before_rename: Callable[[], None] = lambda: None) -> None:
    """Replace `path` by the parts, one after the other, in one step that survives a power cut: written under a temporary name, flushed to disk,
    renamed. Several writers may race: one wins whole. If `parts` or `before_rename` raises, nothing has happened."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        before_rename()
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Create `folder` and what is missing above it, each new name flushed to the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_text(path: Path, text: str, before_rename: Callable[[], None] = lambda: None) -> None:
    """`write_bytes` of `text` in UTF-8."""
    write_bytes(path, text.encode("utf-8"), before_rename)


def write_json(path: Path, value: Any, before_rename: Callable[[], None] = lambda: None) -> None:
    """`write_text` of `value` as JSON. Numpy scalars become numbers, NaN and infinities null (JSON has no word for them)."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n", before_rename)


def read_json(path: Path) -> Any:
    """The JSON in `path`. Raises `UserError` naming the file when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); it is written by r1mega: remove it and run again") from error


def share(path: Path) -> None:
    """Give a file the permissions that this process gives new files; some libraries leave theirs to their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that someone else wrote. Raises `DataError` naming the file when it holds anything else."""
    try:
        content: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    except PermissionError as error:
        raise DataError(f"{path}: permission denied: this user may not read it") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def plain(value: Any) -> Any:
    """`value` as data that JSON and YAML can hold: mappings, lists, strings, finite numbers, booleans and None."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # a numpy scalar or array
        return plain(value.tolist())
    return str(value)


def point(link: Path, target: str) -> None:
    """Make `link` a symlink to `target` (relative to it) in one step, whatever it was before."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(path: Path) -> dict[str, str]:
    """The digest of every file below a folder by its relative path, sorted; of a file itself under its name."""
    if path.is_file():
        return {path.name: file_digest(path)}
    found = sorted(item for item in path.rglob("*") if item.is_file())
    return {item.relative_to(path).as_posix(): file_digest(item) for item in found}


def combined(parts: dict[str, str]) -> str:
    """One digest for several named ones."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
