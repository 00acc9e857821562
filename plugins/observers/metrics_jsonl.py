"""metrics.jsonl in the stage's folder: one JSON object a step, `{"step": 12, "time": <unix seconds>, "reward": 0.41, ...}`. Always on.

A step is there once, whatever was killed and resumed. Values that are not finite are text ("nan").
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from r1mega import hookimpl
from r1mega.observe import jsonl

NAME = "metrics.jsonl"


@hookimpl
def stage_start(stage_dir: Path, step: int) -> None:
    jsonl.truncate_after(stage_dir / NAME, step)


@hookimpl
def step_end(stage_dir: Path, step: int, metrics: Mapping[str, float]) -> None:
    jsonl.append_step(stage_dir / NAME, step, [{"time": round(time.time(), 3), **metrics}])
