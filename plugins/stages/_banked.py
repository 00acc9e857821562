"""Answers of servers and other slow oracles, which never say the same twice: asked once, kept for the rerun."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from r1mega.recipe import files


def banked(path: Path, questions: Sequence[Any], answer: Callable[[], Sequence[Any]], before_rename: Callable[[], None]) -> list[Any]:
    """What `path` holds in answer to exactly these questions; else what `answer` gives now, kept there. Both are JSON values."""
    source = hashlib.sha256(json.dumps(questions).encode()).hexdigest()
    found = files.read_json(path) if path.is_file() else {}
    if found.get("source") != source:  # none yet, or of another layout's share
        found = {"source": source, "answers": list(answer())}
        files.make_folder(path.parent)
        files.write_json(path, found, before_rename)
    return list(found["answers"])
