"""Weights & Biases. On exactly when the environment variable WANDB_PROJECT is set; wandb reads WANDB_API_KEY, WANDB_MODE and others itself.

Each stage is one run, in a group named after the run folder; its id is kept in `<stage_dir>/wandb_run_id`, so that a resumed stage continues
its run. Of a step that is sent twice wandb keeps the first.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from r1mega import hookimpl
from r1mega.errors import UserError
from r1mega.observe.metrics import scalars

_runs: dict[Path, Any] = {}


@hookimpl
def stage_start(run_dir: Path, stage: str, stage_dir: Path) -> None:
    if os.environ.get("WANDB_PROJECT") and stage_dir not in _runs:
        _runs[stage_dir] = _start(run_dir, stage, stage_dir)


@hookimpl
def step_end(run_dir: Path, stage: str, stage_dir: Path, step: int, metrics: Mapping[str, float]) -> None:
    stage_start(run_dir, stage, stage_dir)
    if stage_dir in _runs:
        _runs[stage_dir].log(scalars(metrics), step=step)


@hookimpl
def stage_end(stage_dir: Path, metrics: Mapping[str, Any]) -> None:
    run = _runs.pop(stage_dir, None)
    if run is not None:
        run.summary.update(scalars(metrics, "final/"))
        run.finish()


def _start(run_dir: Path, stage: str, stage_dir: Path) -> Any:
    if importlib.util.find_spec("wandb") is None:
        raise UserError("WANDB_PROJECT is set but the package wandb is not installed: pip install 'r1mega[wandb]', or unset WANDB_PROJECT")
    import wandb

    id_file, config = stage_dir / "wandb_run_id", stage_dir / "config.yaml"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex)
    try:
        return wandb.init(
            id=id_file.read_text().strip(), resume="allow", name=f"{run_dir.name}/{stage}", group=run_dir.name, job_type=stage, dir=stage_dir,
            config=yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else None,
        )
    except wandb.errors.Error as error:
        raise UserError(f"WANDB_PROJECT is set but Weights & Biases cannot start: {error}. "
                        "Log in, set WANDB_MODE=offline, or unset WANDB_PROJECT") from error
