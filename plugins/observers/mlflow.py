"""MLflow. On exactly when the environment variable MLFLOW_TRACKING_URI is set; the experiment is MLFLOW_EXPERIMENT_NAME, "r1mega" by default.

Each stage is one run, named after the run folder and the stage; its id is kept in `<stage_dir>/mlflow_run_id`, so that a resumed stage
continues its run, and steps that were already sent are not sent again. A server that fails later costs points, with a warning, not the
training.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r1mega import hookimpl
from r1mega.errors import UserError
from r1mega.observe.metrics import scalars

log = logging.getLogger(__name__)


class Run:
    """One stage's MLflow run, new or continued. Raises `MlflowException` when the server cannot be used."""

    def __init__(self, run_dir: Path, stage: str, stage_dir: Path) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        self.last_step = 0
        id_file = stage_dir / "mlflow_run_id"
        if id_file.exists():
            self._id = id_file.read_text().strip()
            self._client.update_run(self._id, status="RUNNING")
            names = self._client.get_run(self._id).data.metrics
            self.last_step = max((point.step for name in names for point in self._client.get_metric_history(self._id, name)), default=0)
        else:
            self._id = self._client.create_run(self._experiment(), run_name=f"{run_dir.name}/{stage}").info.run_id
            id_file.write_text(self._id)

    def send(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, value, now, step) for name, value in values.items()]
        self._try(f"step {step}", lambda: self._client.log_batch(self._id, metrics=points))
        self.last_step = max(self.last_step, step)

    def finish(self) -> None:
        self._try("the end", lambda: self._client.set_terminated(self._id))

    def _try(self, what: str, call: Callable[[], object]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            call()
        except (MlflowException, OSError) as error:
            log.warning("MLflow did not take %s of run %s: %s", what, self._id, error)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "r1mega")
        there = self._client.get_experiment_by_name(name)
        return str(there.experiment_id if there else self._client.create_experiment(name))


_runs: dict[Path, Run] = {}


@hookimpl
def stage_start(run_dir: Path, stage: str, stage_dir: Path) -> None:
    if os.environ.get("MLFLOW_TRACKING_URI") and stage_dir not in _runs:
        _runs[stage_dir] = _start(run_dir, stage, stage_dir)


@hookimpl
def step_end(run_dir: Path, stage: str, stage_dir: Path, step: int, metrics: Mapping[str, float]) -> None:
    stage_start(run_dir, stage, stage_dir)
    run = _runs.get(stage_dir)
    if run is not None and step > run.last_step:
        run.send(step, scalars(metrics))


@hookimpl
def stage_end(stage_dir: Path, metrics: Mapping[str, Any]) -> None:
    run = _runs.pop(stage_dir, None)
    if run is not None:
        run.send(run.last_step, scalars(metrics, "final/"))
        run.finish()


def _start(run_dir: Path, stage: str, stage_dir: Path) -> Run:
    if importlib.util.find_spec("mlflow") is None:
        raise UserError("MLFLOW_TRACKING_URI is set but the package mlflow is not installed: pip install 'r1mega[mlflow]', "
                        "or unset MLFLOW_TRACKING_URI")
    from mlflow.exceptions import MlflowException

    try:
        return Run(run_dir, stage, stage_dir)
    except (MlflowException, OSError) as error:
        raise UserError(f"MLFLOW_TRACKING_URI is {os.environ['MLFLOW_TRACKING_URI']} but MLflow cannot use it: {error}") from error
