"""Digests of external files that need not be read again: an imported checkpoint may have a terabyte, and every `run` and `status` asks for it.

Only the question whether a stage is stale is answered from here. Whether an artifact is whole never is: `artifacts.damage` reads all of it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from r1mega.recipe import files

_SETTLED_NS = 2_000_000_000  # a file changed less than this before it was read may change again without a new time: file systems keep whole seconds


class KnownDigests:
    """SHA-256 of files, remembered in `path` while a file's size, time of change and inode stay the same."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)
        self._settled: dict[str, list[int | str]] = {}  # found now, and worth keeping

    def __call__(self, file: Path) -> str:
        """The digest of a file's bytes, in hexadecimal."""
        place, there = str(file.absolute()), file.stat()
        state = [there.st_size, there.st_mtime_ns, there.st_ino]
        known = self._known.get(place)
        if known is not None and known[:-1] == state:
            return str(known[-1])
        now = time.time_ns()
        digest = files.file_digest(file)
        self._known[place] = [*state, digest]
        if now - there.st_mtime_ns > _SETTLED_NS:
            self._settled[place] = self._known[place]
        return digest

    def save(self) -> None:
        """Write down what has been found; for the process that holds the run folder's lock."""
        if self._settled:
            files.write_json(self._path, _read(self._path) | self._settled)
            self._settled = {}


def _read(path: Path) -> dict[str, list[int | str]]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # absent or broken: then everything is read
        return {}
