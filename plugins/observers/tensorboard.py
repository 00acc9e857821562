"""TensorBoard event files in `<stage_dir>/tensorboard`: `tensorboard --logdir RUN_DIR/stages`. On wherever the package is installed.

Records are written with TensorBoard's own protocol buffers and record writer, not through torch: no thread, and each step is in the file when
the call returns.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1mega import hookimpl
from r1mega.observe.metrics import scalars


class EventFile:
    """One event file, begun at the first step of this run. Points at `first_step` and later that an earlier run left are superseded."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{_stamp(folder):010d}.{socket.gethostname()}.{os.getpid()}").open("xb")
        self._records = RecordWriter(self._file)
        self._event = Event
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))
        self.last_step = first_step - 1

    def add(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]))
        self.last_step = step

    def close(self) -> None:
        self._file.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()


_open: dict[Path, EventFile] = {}


@hookimpl
def step_end(stage_dir: Path, step: int, metrics: Mapping[str, float]) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        return
    if stage_dir not in _open:
        _open[stage_dir] = EventFile(stage_dir / "tensorboard", step)
    _open[stage_dir].add(step, scalars(metrics))


@hookimpl
def stage_end(stage_dir: Path, metrics: Mapping[str, Any]) -> None:
    events = _open.pop(stage_dir, None)
    if events is not None:
        events.add(events.last_step, scalars(metrics, "final/"))
        events.close()


def _stamp(folder: Path) -> int:
    """Now in whole seconds, but later than every file there: TensorBoard reads the files of a folder by name."""
    there = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    return max([int(time.time()), *(stamp + 1 for stamp in there)])
