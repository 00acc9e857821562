"""The stages of the tiny recipe through the command line, with other layouts, algorithms and tasks than its own: a few steps each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BASE = ["stages.base.steps=100", "stages.base.tokenizer_documents=500"]
ZERO = ["stages.zero.steps=2", "stages.zero.prompts_per_rollout=4", "stages.zero.group_size=4", "stages.zero.evaluation.max_problems=6",
        "stages.zero.evaluation.samples=2", "rollout.max_tokens=24", "stages.score.evaluation.max_problems=5", "stages.score.evaluation.samples=2"]


def run(folder: Path, *overrides: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "r1mega", "run", "recipe=r1_zero_tiny", f"output_dir={folder}", *BASE, *ZERO, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def last_metrics(folder: Path, stage: str) -> dict[str, Any]:
    lines = (folder / "stages" / stage / "current" / "metrics.jsonl").read_text().splitlines()
    metrics: dict[str, Any] = json.loads(lines[-1])
    return metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which the base is done."""
    folder = tmp_path_factory.mktemp("stages")
    run(folder, "--only", "base")
    return folder


@pytest.mark.parametrize(("layout", "more"), [
    ("tp2", ["stages.zero.algorithm=gspo"]),
    ("pp2", ["stages.zero.algorithm=dapo", "stages.zero.algorithm.overlong_buffer=8", "stages.zero.updates_per_rollout=2", "stages.zero.max_resamples=2"]),
    ("ep2", ["stages.zero.algorithm=dr_grpo", "stages.zero.checkpoint.async_save=true", "stages.zero.checkpoint.every=1"]),
    ("single", ["stages.zero.algorithm=grpo", "stages.zero.updates_per_rollout=2", "stages.zero.prompts_per_unit=2"]),
])
def test_a_stage_continues_on_another_layout_with_another_algorithm(folder: Path, layout: str, more: list[str]) -> None:
    """The base was made by two data-parallel ranks; the generator's log-probs stay the trainer's on every layout."""
    output = run(folder, f"stages.zero.parallel={layout}", *more)
    assert "base: done before" in output
    metrics = last_metrics(folder, "zero")
    assert metrics["step"] == 2
    assert not metrics["skipped"], "no sample to learn from: the base is too weak for this test to say anything"
    assert metrics["mismatch"] < 1e-4, metrics
    summary = json.loads((folder / "summary.json").read_text())["stages"]["zero"]
    assert summary["state"] == "done"
    assert 0 <= summary["metrics"]["pass_at_1"] <= 1
    assert "pass_at_1_before" in summary["metrics"]


def test_reasoning_gym_with_its_own_scorer(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym", reason="the extra 'gym' is not installed")
    run(tmp_path, "task=reasoning_gym", "task.size=60", "+task.parameters={min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}",
        "reward=reasoning_gym", "stages.base.steps=3")
    assert "reward/accuracy" in last_metrics(tmp_path, "zero")


def test_the_evaluate_stage_reports_on_the_trained_policy(folder: Path) -> None:
    run(folder, "stages.zero.parallel=single", "stages.score.parallel=tp2")
    metrics = json.loads((folder / "summary.json").read_text())["stages"]["score"]["metrics"]
    assert metrics["problems"] == 5
    assert set(metrics) >= {"pass_at_1", "pass_at_1_ci95", "cons_at_k", "mean_length", "format_rate"}
    assert json.loads((folder / "stages/score/current/artifacts/report/report.json").read_text())["pass_at_1"] == metrics["pass_at_1"]
