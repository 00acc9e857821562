"""The entry of a rank: `python -m r1mega.recipe.worker STAGE_DIR`, started by the launcher with RANK, WORLD_SIZE and torch's other variables.

`STAGE_DIR/run.json` says what to do, `STAGE_DIR/config.yaml` with which settings. Standard output and error are the rank's log; rank 0's Python
streams also reach the driver's terminal.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import faulthandler
import io
import json
import os
import re
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO

import yaml

from r1mega import compose, plugins
from r1mega.errors import PluginError, R1MegaError, UserError
from r1mega.recipe import files, guardian
from r1mega.recipe.context import StageContext

_REDRAW = re.compile(r"\r(?!\n)|\x1b\[[0-9;?]*[A-Zhl]")  # moves the cursor: a live display, nothing for a log
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STORAGE = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "the file system is read-only"}
_NEARLY_FULL = 1 << 20  # bytes


class Tee(io.TextIOBase):
    """Rank 0's stdout and stderr: the driver's console, and the log without colours and redraws. `isatty` is the console's."""

    def __init__(self, console: TextIO, log: TextIO) -> None:
        self.console, self.log = console, log

    def write(self, text: str) -> int:
        if not _REDRAW.search(text):
            self.log.write(_COLOUR.sub("", text))
        with contextlib.suppress(OSError):  # the terminal may go away; the run need not
            self.console.write(text)
        return len(text)

    def flush(self) -> None:
        self.log.flush()
        with contextlib.suppress(OSError):
            self.console.flush()

    def isatty(self) -> bool:
        return self.console.isatty()

    def fileno(self) -> int:
        return self.log.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.console.encoding


def main(stage_dir: str) -> int:
    """Run this rank's part of the stage; the exit code."""
    if guardian.PARENT in os.environ:
        guardian.die_with(int(os.environ[guardian.PARENT]))
        os.set_inheritable(int(os.environ[guardian.REPORT_FD]), False)
    faulthandler.enable()
    rank = int(os.environ["RANK"])
    folder = Path(stage_dir)
    _echo_to_console()
    try:
        _run(folder, rank)
    except Exception as error:
        with contextlib.suppress(OSError):  # a full disk has no room for the log either
            traceback.print_exc(file=sys.__stderr__)
        return _report(folder, rank, error)
    return 0


def _run(folder: Path, rank: int) -> None:
    job = files.read_json(folder / "run.json")
    host = plugins.load()
    tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config = compose.config_from_tree(host, job["stage"], tree)
    context = StageContext(
        name=job["node"], config=config, run_dir=Path(job["run_dir"]), dir=folder, epoch=job["epoch"], options=job["options"],
        inputs={name: Path(path) for name, path in job["inputs"].items()},
        rank=rank, world_size=int(os.environ["WORLD_SIZE"]), local_rank=int(os.environ["LOCAL_RANK"]),
    )
    plugin = host.registry.get("stages", job["stage"])
    stage = plugin.factory(config) if plugin.config is not None else plugin.factory()
    metrics = stage.run(context)
    if not isinstance(metrics, Mapping):
        raise PluginError(f"stage '{plugin.name}' of '{plugin.owner}': `run` must return a mapping of metrics, got {type(metrics).__name__}")
    if rank == 0:
        files.write_json(folder / "result.json", {"epoch": context.epoch, "metrics": metrics}, context.check_epoch)
        host.hook.stage_end(run_dir=context.run_dir, stage=context.name, stage_dir=folder, metrics=metrics)


def _echo_to_console() -> None:
    number = os.environ.pop(guardian.CONSOLE_FD, None)
    if number is None:
        return
    os.set_inheritable(int(number), False)
    console = os.fdopen(int(number), "w", encoding="utf-8", errors="replace", buffering=1)
    sys.stdout, sys.stderr = Tee(console, sys.stdout), Tee(console, sys.stderr)
    warnings.showwarning = _log_warning


def _log_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None) -> None:
    """Python's warnings are about libraries, for developers: into the log alone. What a user should know is logged."""
    (file or sys.__stderr__ or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


def describe(error: BaseException, folder: Path) -> dict[str, Any]:
    """An exception as the driver tells it: {"kind", "message" (one line), "exit_code"}. A full or read-only disk is recognised however deep
    in the chain of causes, and by the space left where a library hid it."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno in _STORAGE):
        cause = cause.__cause__ or cause.__context__
    storage = _STORAGE[cause.errno] if isinstance(cause, OSError) and cause.errno else ""
    if not storage and isinstance(error, OSError | RuntimeError) and shutil.disk_usage(folder).free < _NEARLY_FULL:
        storage = _STORAGE[errno.ENOSPC]
    if storage:
        where = f" while writing {cause.filename}" if isinstance(cause, OSError) and cause.filename else ""
        message = f"{storage}{where} (stage folder {folder}); make room and run again: the run resumes where it stopped"
        return {"kind": "UserError", "message": message, "exit_code": UserError.exit_code}
    code = error.exit_code if isinstance(error, R1MegaError) else 1
    return {"kind": type(error).__name__, "message": " ".join(str(error).split()), "exit_code": code}


def _report(folder: Path, rank: int, error: Exception) -> int:
    """Tell what happened: one line in the log, `logs/rank<N>.error.json`, and the guardian, whom a full disk cannot keep from hearing it."""
    report = {"rank": rank, "time": time.time(), **describe(error, folder)}
    report["message"] = report["message"][:900]  # the whole report fits one atomic write to a pipe
    with contextlib.suppress(OSError):
        print(f"{report['kind']}: {report['message']}", file=sys.__stderr__, flush=True)
    with contextlib.suppress(OSError):
        files.write_json(folder / "logs" / f"rank{rank}.error.json", report)
    if guardian.REPORT_FD in os.environ:
        os.write(int(os.environ[guardian.REPORT_FD]), json.dumps(report, ensure_ascii=False).encode(errors="replace") + b"\n")
    return int(report["exit_code"])


def leave(status: int) -> NoReturn:
    """End this rank's process. A failed rank does no clean-up, which could wait for ranks that are gone. A rank that is done does what a normal end
    does (groups, threads, `atexit`) except take the interpreter apart: that frees gloo's groups while their threads run, and aborts one process in
    thirty."""
    if not status:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_initialized():
            distributed.destroy_process_group()
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1]))
