"""Observers, metrics and progress: real files, read back by the libraries they are written for."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from r1mega.errors import R1MegaError, UserError
from r1mega.observe import jsonl
from r1mega.observe.metrics import Kind, Sums, additive, scalars
from r1mega.observe.progress import StageProgress, describe
from r1mega.plugins import Host
from r1mega.rollout.samples import render_samples, write_samples
from r1mega.types import Completion, EncodedPrompt, Prompt, RolloutGroup, ScoredGroup


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A plugin host with the four observers alone, each module fresh as in a new process."""
    for variable in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return new_host()


def new_host() -> Host:
    made = Host()
    for name in ("metrics_jsonl", "tensorboard", "wandb", "mlflow"):
        full = f"r1mega_plugins.observers.{name}"
        sys.modules.pop(full, None)
        made.add(importlib.import_module(full), full)
    made.finish()
    return made


def call(host: Host, stage_dir: Path, step: int, **metrics: float) -> None:
    host.hook.step_end(run_dir=stage_dir.parent, stage="zero", stage_dir=stage_dir, step=step, metrics=metrics)


def start(host: Host, stage_dir: Path, step: int = 0) -> None:
    host.hook.stage_start(run_dir=stage_dir.parent, stage="zero", stage_dir=stage_dir, step=step)


def end(host: Host, stage_dir: Path, **metrics: float) -> None:
    host.hook.stage_end(run_dir=stage_dir.parent, stage="zero", stage_dir=stage_dir, metrics=metrics)


# ------------------------------------------------------------------------------------------------------------------------------ jsonl


def test_metrics_jsonl_has_each_step_once_after_a_resume(host: Host, tmp_path: Path) -> None:
    start(host, tmp_path)
    for step in (1, 2, 3, 4):
        call(host, tmp_path, step, reward=step / 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')  # killed here
    start(host, tmp_path, step=2)
    assert [line["step"] for line in jsonl.read(tmp_path / "metrics.jsonl")] == [1, 2]
    for step in (3, 4, 5):
        call(host, tmp_path, step, reward=step / 3)
    lines = jsonl.read(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["reward"]) for line in lines] == [(step, step / 3) for step in (1, 2, 3, 4, 5)]


def test_a_resume_without_notice_still_doubles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3, 2, 3, 4):
        jsonl.append_step(path, step, [{"a": step}])
    assert [line["step"] for line in jsonl.read(path)] == [1, 2, 3, 4]


def test_a_file_torn_at_any_byte_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for step in range(1, 6):
        jsonl.append_step(path, step, [{"text": "é" * step}])
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = whole[:size].count(b"\n")
        assert [line["step"] for line in jsonl.read(path)] == list(range(1, kept + 1))
        jsonl.append_step(path, kept + 1, [{"text": "é" * (kept + 1)}])
        assert whole.startswith(path.read_bytes()) or kept == 5
        assert [line["step"] for line in jsonl.read(path)] == list(range(1, kept + 2))


def test_truncation_counts_lines_longer_than_a_read_block(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    assert jsonl.truncate_after(path, 0) == 0
    for step in (1, 2, 2, 3):
        jsonl.append_step(path, step, [{"text": "x" * 200_000}])
    jsonl.append_step(path, 3, [{"k": 0}, {"k": 1}])
    assert jsonl.truncate_after(path, 3) == 0
    assert jsonl.truncate_after(path, 1) == 3
    assert [line["step"] for line in jsonl.read(path)] == [1]
    assert jsonl.truncate_after(path, 0) == 1
    assert path.read_bytes() == b""


def test_values_that_are_not_finite_stay_readable_json(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    jsonl.append_step(path, 1, [{"loss": math.nan, "deep": {"x": [math.inf]}, "broken": "\udc80"}])
    (line,) = path.read_text().splitlines()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["loss"] == "nan"


def test_a_foreign_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("[1]\n")
    with pytest.raises(R1MegaError, match=r"m\.jsonl: a line is not an object with a whole number 'step'"):
        jsonl.append_step(path, 1, [{}])


def test_a_full_disk_takes_the_half_line_back(tmp_path: Path) -> None:
    program = ("import resource, sys; from pathlib import Path; from r1mega.observe import jsonl; from r1mega.errors import R1MegaError\n"
               "path = Path(sys.argv[1]); jsonl.append_step(path, 1, [{'a': 1}])\n"
               "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
               "try: jsonl.append_step(path, 2, [{'a': 'x' * 5000}])\nexcept R1MegaError as error: print(error)")
    path = tmp_path / "m.jsonl"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60)
    assert "cannot append step 2 to" in done.stdout, done.stderr
    assert path.read_text() == '{"step": 1, "a": 1}\n'


# ------------------------------------------------------------------------------------------------------------------------ tensorboard


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_what_was_written_and_a_resume_supersedes(host: Host, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        call(host, tmp_path, step, reward=step / 4, kl=0.5)
    assert read_events(tmp_path / "tensorboard")["reward"] == [(1, 0.25), (2, 0.5), (3, 0.75)], "a step is not on disk when its hook returns"
    for file in (tmp_path / "tensorboard").iterdir():
        file.write_bytes(file.read_bytes()[:-5])  # killed in the middle of step 3's record
    host = new_host()
    for step in (2, 3):
        call(host, tmp_path, step, reward=float(step))
    end(host, tmp_path, pass_at_1=0.875)
    got = read_events(tmp_path / "tensorboard")
    assert got["reward"] == [(1, 0.25), (2, 2.0), (3, 3.0)]
    assert got["final/pass_at_1"] == [(3, 0.875)]


def test_observers_import_neither_torch_nor_a_tracker(tmp_path: Path) -> None:
    program = ("import sys, time, r1mega_plugins.observers.tensorboard as t, r1mega_plugins.observers.metrics_jsonl\n"
               "import r1mega_plugins.observers.wandb, r1mega_plugins.observers.mlflow, r1mega.observe.progress, r1mega.rollout.samples\n"
               "import r1mega.rollout.ledger, r1mega.rollout.packing\n"
               "from pathlib import Path\nheavy = {'torch', 'tensorflow', 'tensorboard', 'wandb', 'mlflow'}\n"
               "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
               "began = time.process_time(); t.step_end(Path(sys.argv[1]), 1, {'a': 1.0}); print(time.process_time() - began)\n"
               "assert not {'torch', 'tensorflow'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.5, "TensorBoard's first step takes seconds"


# ----------------------------------------------------------------------------------------------------------------------- wandb, mlflow


@pytest.mark.parametrize(("variable", "extra"), [("WANDB_PROJECT", "wandb"), ("MLFLOW_TRACKING_URI", "mlflow")])
def test_a_tracker_that_is_asked_for_but_absent_names_its_extra(
    variable: str, extra: str, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == extra else there(name, *rest))
    start(host, tmp_path)  # not asked for: nothing happens
    monkeypatch.setenv(variable, "x")
    with pytest.raises(UserError, match=rf"{variable} is set but the package {extra} is not installed: pip install 'r1mega\[{extra}\]'"):
        start(host, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed (extra 'mlflow')")
def test_mlflow_stores_each_step_once(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    stage_dir = tmp_path / "stage"
    stage_dir.mkdir()
    start(host, stage_dir)
    for step in (1, 2, 3):
        call(host, stage_dir, step, reward=step / 4)
    host = new_host()
    start(host, stage_dir, step=1)
    for step in (2, 3, 4):
        call(host, stage_dir, step, reward=step / 4)
    end(host, stage_dir, pass_at_1=0.875)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("r1mega")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.metrics["final/pass_at_1"]) == ("FINISHED", 0.875)
    points = client.get_metric_history(run.info.run_id, "reward")
    assert sorted((point.step, point.value) for point in points) == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed (extra 'mlflow')")
def test_an_mlflow_store_that_cannot_be_used_is_a_clear_error(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI is nonsense://here but MLflow cannot use it"):
        start(host, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed (extra 'wandb')")
def test_wandb_writes_an_offline_run(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "r1mega-test")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    start(host, tmp_path)
    for step in (1, 2):
        call(host, tmp_path, step, reward=step / 4)
    end(host, tmp_path, pass_at_1=0.875)
    name = (tmp_path / "wandb_run_id").read_text()
    (stored,) = tmp_path.rglob(f"run-{name}.wandb")
    deadline = time.monotonic() + 10  # wandb's own process may still be flushing
    while b"final/pass_at_1" not in stored.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"final/pass_at_1" in stored.read_bytes()
    assert b"0.875" in stored.read_bytes()


# ------------------------------------------------------------------------------------------------------------------------------ metrics


NAMES: dict[str, Kind] = {"loss": "mean", "longest": "max", "tokens": "sum", "shortest": "min", "rare": "mean"}


def test_a_mean_over_ranks_is_the_mean_over_all_values_and_extremes_are_exact() -> None:
    rng = np.random.default_rng(0)
    data = [[rng.normal(size=rng.integers(1, 30)) for _ in range(3)] for _ in range(5)] + [[]]  # the last rank saw nothing
    ranks = []
    for batches in data:
        sums = Sums(NAMES)
        for batch in batches:
            part = Sums(NAMES)
            part.add("loss", batch.sum(), len(batch))
            part.add("tokens", len(batch))
            part.add("longest", batch.max())
            part.add("shortest", batch.min())
            part.add("rare", 0.0, 0)
            sums.merge(part)
        ranks.append(sums.to_vector(NAMES))
    cut = additive(NAMES)
    reduced = np.concatenate([np.sum([v[:cut] for v in ranks], axis=0), np.max([v[cut:] for v in ranks], axis=0)])
    result = Sums.from_vector(NAMES, reduced).result()
    everything = np.concatenate([batch for batches in data for batch in batches])
    assert result["loss"] == pytest.approx(everything.mean(), rel=1e-14)
    assert (result["tokens"], result["longest"], result["shortest"]) == (len(everything), everything.max(), everything.min())
    assert "rare" not in result, "a metric without data must be absent, not 0"
    assert np.array_equal(Sums.from_vector(NAMES, reduced).to_vector(NAMES), reduced)


def test_a_metric_cannot_get_lost_or_change_its_kind() -> None:
    sums = Sums({"longest": "max"})
    sums.add("longest", 3)
    sums.add("loss", 1.0, 2)
    with pytest.raises(ValueError, match="'loss' is a mean, but the vector's names say None"):
        sums.to_vector({"longest": "max"})
    with pytest.raises(ValueError, match="'longest' is a mean here and a max there"):
        Sums().merge(sums)
    with pytest.raises(ValueError, match="count must not be negative"):
        sums.add("loss", 1, -1)
    with pytest.raises(ValueError, match="3 entries for 1 additive metrics and 0 extremes"):
        Sums.from_vector({"a": "mean"}, np.zeros(3))


def test_nan_is_not_hidden_by_an_extreme() -> None:
    sums = Sums({"worst": "max"})
    for value in (1.0, math.nan, 2.0):
        sums.add("worst", value)
    assert math.isnan(sums.result()["worst"])


def test_scalars_flattens_numbers_and_leaves_the_rest() -> None:
    assert scalars({"a": 1, "b": {"c": np.float32(0.5), "d": "text"}, "e": [1]}) == {"a": 1.0, "b/c": 0.5}


# ----------------------------------------------------------------------------------------------------------------------------- progress


def test_a_plain_line_comes_first_then_every_so_often_and_last() -> None:
    out, now = io.StringIO(), [0.0]
    progress = StageProgress("zero", 10, console=Console(file=out, force_terminal=False), every=30, clock=lambda: now[0])
    with progress:
        for step in range(1, 11):
            now[0] += 12
            progress.update(step, {"reward": step / 10, "kl": 0.00123, "tokens_per_second": 3141.0})
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/10", "4/10", "7/10", "10/10"]
    assert lines[0] == "zero 1/10  reward 0.100  kl 1.23e-03  tok/s 3.1k  eta 1:48"
    assert lines[-1].endswith("eta 0:00")


def test_an_interrupted_stage_prints_where_it_stood() -> None:
    out = io.StringIO()
    progress = StageProgress("base", 100, start=40, console=Console(file=out, force_terminal=False), clock=lambda: 0.0)
    progress.update(41, {"loss": 1.0})
    progress.update(42, {"loss": 0.5})
    progress.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["41/100", "42/100"]


def test_a_terminal_gets_a_live_line() -> None:
    out = io.StringIO()
    with StageProgress("zero", 4, console=Console(file=out, force_terminal=True, width=160)) as progress:
        progress.update(4, {"reward": 0.5, "accuracy": 0.25})
    assert "reward 0.500" in out.getvalue()
    assert "\x1b[" in out.getvalue()


def test_time_left_counts_only_the_steps_of_this_run() -> None:
    out, now = io.StringIO(), [0.0]
    with StageProgress("zero", 60, start=50, console=Console(file=out, force_terminal=False), clock=lambda: now[0]) as progress:
        now[0] = 10.0
        progress.update(51, {})
    assert out.getvalue() == "zero 51/60  eta 1:30\n"
    assert describe(1, 2, {"reward/accuracy": 1.0}, 7322.4) == "1/2  accuracy 1.000  eta 2:02:02"


# ------------------------------------------------------------------------------------------------------------------------------ samples


def group(name: str, rewards: list[float], valid: list[bool] | None = None) -> ScoredGroup:
    completions = tuple(Completion(f"{name}#{k}", (1, 2, 3), (0.0,) * 3, f"<think>{k}</think>", "stop", 0) for k in range(len(rewards)))
    prompt = EncodedPrompt(Prompt(name, f"{name}?", "8"), f"User: {name}?", (1,))
    return ScoredGroup(RolloutGroup(prompt, completions), tuple(rewards), {"accuracy": tuple(rewards)}, tuple(valid or [True] * len(rewards)))


def test_samples_show_best_and_worst_of_one_group_after_another(tmp_path: Path) -> None:
    groups = [group("a", [0.5, 1.0, 0.0]), group("b", [0.0, 1.0], [False, True])]
    advantages = [np.array([0.0, 1.2, -1.2], np.float32), np.array([np.nan, 0.5], np.float32)]
    write_samples(tmp_path / "s.jsonl", 1, groups, 4, advantages)
    write_samples(tmp_path / "s.jsonl", 2, groups, 1)
    write_samples(tmp_path / "s.jsonl", 2, groups, 1)  # the same step again, after a resume
    lines = jsonl.read(tmp_path / "s.jsonl")
    assert [(line["step"], line["id"]) for line in lines] == [(1, "a#1"), (1, "a#2"), (1, "b#1"), (1, "b#0"), (2, "a#1")]
    assert lines[0] == {"step": 1, "id": "a#1", "prompt": "User: a?", "completion": "<think>1</think>", "answer": "8", "reward": 1.0,
                        "parts": {"accuracy": 1.0}, "length": 3, "finish_reason": "stop", "advantage": pytest.approx(1.2)}
    assert (lines[3]["reward"], lines[3]["advantage"]) == (None, None)


def test_rendered_samples_are_short_and_whole() -> None:
    text = render_samples([group("a", [0.5, 1.0])], limit=5)
    assert text.count("[a#") == 2
    assert text.splitlines()[:3] == ["[a#1] reward 1 (accuracy 1), 3 tokens, stop, answer 8", "    a?", "    <think>1</think>"]
    assert render_samples([], limit=3) == ""


def test_logging_is_quiet_when_nothing_is_wrong(host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        call(host, tmp_path, 1, reward=1.0)
    assert not [record for record in caplog.records if record.name.startswith("r1mega")]
