"""Rows with their places, from the replicas to rank 0: written by each replica's lead, read back merged in the order of the places."""

from __future__ import annotations

import dataclasses
import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from r1mega.recipe import files


def write_placed(path: Path, rows: Iterable[tuple[Sequence[int], Any]], before_rename: Callable[[], None]) -> None:
    """The rows, dataclass instances, in the order of their places."""
    files.make_folder(path.parent)
    files.write_parts(path, (json.dumps([place, files.plain(dataclasses.asdict(row))]).encode() + b"\n" for place, row in rows), before_rename)


def merge_placed(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The fields of all rows of these files, in the order of their places. One row a file is in memory."""
    return (row for _, row in heapq.merge(*map(_read, paths), key=lambda pair: pair[0]))


def _read(path: Path) -> Iterator[tuple[list[int], dict[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            place, row = json.loads(line)
            yield place, row
