"""How the benchmark over seeds runs a recipe: measured, continued, and never with a peak that nobody saw."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TOYS = Path(__file__).parent / "toy_distribution"


@pytest.fixture
def runs(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module beside the script, and an outside plugin's recipe `toy` on the path of what it starts."""
    monkeypatch.syspath_prepend(str(repo / "launch" / "bench"))
    monkeypatch.setenv("PYTHONPATH", str(TOYS))
    import _r1_runs
    yield _r1_runs
    sys.modules.pop("_r1_runs")


def test_a_run_is_measured_and_continued(runs: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "kept" / "seed_3"
    first = runs.run("toy", 3, folder, [])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seed"] == 3
    assert runs.finished(folder)
    assert 0.03 < first.peak_gib < 4, "the driver and two ranks with a Python each"
    assert first.seconds >= runs.stage_seconds(folder) > 0
    told = capfd.readouterr()
    assert "seed 3" in told.err, "the run's own summary goes to stderr, so that the benchmark's JSON is alone on stdout"
    assert f"report: {folder / 'report.html'}" in told.err.splitlines()
    assert told.out == ""

    again = runs.run("toy", 3, folder, [])
    assert again.seconds >= runs.stage_seconds(folder), "a run with nothing left to do took as long as its stages"
    assert again.peak_gib >= first.peak_gib
    assert runs.cost_of(folder) == runs.Cost(runs.stage_seconds(folder), again.peak_gib, first.load)

    shutil.move(folder, tmp_path / "begun_elsewhere")
    assert runs.run("toy", 3, tmp_path / "begun_elsewhere", []).peak_gib is None, "who has seen a part of a run has not seen its peak"


def test_a_run_that_fails_says_where_it_lies(runs: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"seed 0: the run ended with exit code 2; its folder is {tmp_path / 'run'}"):
        runs.run("no_such_recipe", 0, tmp_path / "run", [])
    assert os.listdir(tmp_path) == ["run.cost.json"]
