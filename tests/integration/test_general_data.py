"""The stage `general_data` through the command line: four sets on disk, the same again from the same settings, and clear refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_plugin import install

from r1mega.data.records import read_preferences, read_prompts, read_samples
from r1mega.data.world.preferences import is_safe, preference_score

SETS = ("samples", "prompts", "refusals", "preferences")


RECIPE = "description: general data\nstages:\n  general: {stage: general_data, overrides: [samples=60, preferences=40]}\n"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed outside plugin that brings a recipe of that stage alone."""
    return install(tmp_path_factory.mktemp("plugin"), "general", RECIPE)


def run(plugin: Path, folder: Path, *overrides: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "r1mega", "run", "recipe=general", f"output_dir={folder}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(plugin)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def artifacts(folder: Path) -> Path:
    return folder / "stages" / "general" / "current" / "artifacts"


def digests(folder: Path) -> list[str]:
    return [(artifacts(folder) / name / "content.sha256").read_text() for name in SETS]


def test_four_sets_made_again_alike_by_one_rank_or_two(plugin: Path, tmp_path: Path) -> None:
    run(plugin, tmp_path / "one")
    run(plugin, tmp_path / "two", "stages.general.parallel=dp2")
    run(plugin, tmp_path / "other", "stages.general.seed=1")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one")[0] != digests(tmp_path / "other")[0]
    assert digests(tmp_path / "one")[1] == digests(tmp_path / "other")[1], "which requests there are does not depend on the seed"
    folder = artifacts(tmp_path / "one")
    assert sorted(path.name for path in folder.iterdir()) == sorted(SETS), "nothing unfinished is left"
    samples, prompts, (pairs, judged) = read_samples(folder / "samples"), read_prompts(folder / "prompts"), read_preferences(folder / "preferences")
    assert (len(samples), len(pairs), len(judged)) == (60, 40, 40)
    asked = {prompt.question for prompt in prompts}
    refusals = read_prompts(folder / "refusals")
    assert {prompt.question for prompt in refusals} == {prompt.question for prompt in prompts if prompt.domain == "safety"}
    assert all(isinstance(prompt.metadata["refusal_expected"], bool) for prompt in refusals)
    assert {row.prompt for row in [*samples, *pairs, *judged]} <= asked
    assert all(preference_score(pair.prompt, pair.chosen) > preference_score(pair.prompt, pair.rejected) for pair in pairs)
    assert all(row.safe == is_safe(row.prompt, row.response) for row in judged)
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())["stages"]["general"]
    assert summary["state"] == "done"
    assert summary["metrics"]["safe_share"] == 0.5


def test_a_task_without_general_data_is_refused_by_name(plugin: Path, tmp_path: Path) -> None:
    output = run(plugin, tmp_path, "task=arithmetic", code=2)
    assert "task 'arithmetic' has no general_samples; choose a task with general data, such as tiny_world" in output
    assert "Traceback" not in output


def test_an_unknown_side_is_refused_before_anything_runs(plugin: Path, tmp_path: Path) -> None:
    assert "split must be train or test, got 'dev'" in run(plugin, tmp_path, "stages.general.split=dev", code=2)
    assert not (tmp_path / "stages").exists()
