"""One run in a folder at a time, and a number for every attempt at a stage.

The lock is the kernel's (`flock`), so it goes when the process that holds it dies, however it dies; the file's text only serves the message.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TextIO

from r1mega.errors import UserError
from r1mega.recipe import files


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for the block. Raises `UserError` naming the process and host that hold it already."""
    with path.open("a+", encoding="utf-8") as file:
        _take(file, path)
        file.truncate(0)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _take(file: TextIO, path: Path) -> None:
    deadline = time.monotonic() + 0.5  # `holder` looks by taking the lock for a moment
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise UserError(f"another run is at work in {path.parent}: {_holder(path)}. "
                                "Wait for it, end it, or choose another output_dir") from error
            time.sleep(0.05)


def holder(path: Path) -> str | None:
    """Who holds the lock right now, or None when nobody does."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(path)
    return None


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (ValueError, KeyError):  # taken this very moment, its text not written yet
        return "a process that has just started"


def next_epoch(stage_dir: Path) -> int:
    """Begin an attempt: raise the number in `<stage_dir>/epoch`, from 1, and return it. Ranks of older attempts write nothing after this
    (`StageContext.check_epoch`), also where their folder has been set aside and this one has taken its place."""
    file = stage_dir / "epoch"
    before = [one for one in (file, *stage_dir.parent.glob(f"{stage_dir.name}.aside-*/epoch")) if one.exists()]
    epoch = 1 + max((int(one.read_text()) for one in before), default=0)
    files.write_text(file, f"{epoch}\n")
    return epoch
