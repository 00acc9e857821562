"""JSON Lines files with one or more lines per training step, safe against a kill at any byte and against a resume from an earlier step.

Every line is an object with a whole number under `step`, and steps never decrease. A line that is not ended by a newline was torn by a kill.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1mega.errors import R1MegaError


def append_step(path: Path, step: int, records: Sequence[Mapping[str, Any]]) -> None:
    """Append `records`, each as a line that begins with `"step": step`. Lines of this step or later ones, left by a run that was killed and has
    resumed from before them, are cut first, so that no step is ever there twice. Numbers that are not finite are written as text ("nan").

    Raises `R1MegaError` when the file cannot be written; what was written of these records is taken back.
    """
    lines = "".join(json.dumps({"step": step, **{key: _finite(value) for key, value in record.items()}}, ensure_ascii=False) + "\n"
                    for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        truncate_after(path, step - 1)
        end = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write(lines.encode("utf-8", "backslashreplace"))
        except OSError:
            os.truncate(path, end)
            raise
    except OSError as error:
        raise R1MegaError(f"cannot append step {step} to {path}: {error.strerror}. Free space or make it writable, then run again") from error


def truncate_after(path: Path, step: int) -> int:
    """Cut a torn last line and every line of a later step than `step`; the number of lines cut. A missing file is an empty one.

    Reads backwards from the end, so the cost is that of what is cut.
    """
    if not path.exists():
        return 0
    cut = 0
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start, line = _last_line(file, end)
            if line.endswith(b"\n") and _step_of(line, path) <= step:
                break
            end, cut = start, cut + 1
        if cut:
            file.truncate(end)
    return cut


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines, for reports and tests; a torn last line is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _last_line(file: Any, end: int) -> tuple[int, bytes]:
    """Where the last line before byte `end` starts, and the line with its newline if it has one."""
    line = b""
    start = end
    while start:
        size = min(start, 65536)
        file.seek(start - size)
        line = file.read(size) + line
        at = line.rfind(b"\n", 0, len(line) - 1)
        if at >= 0:
            return start - size + at + 1, line[at + 1 :]
        start -= size
    return 0, line


def _step_of(line: bytes, path: Path) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise R1MegaError(f"{path}: a line is not an object with a whole number 'step': {line[:80]!r}. "
                          "Move the file away and run again") from error


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity; readers of other languages stop at Python's spelling of them."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
