"""Evaluations killed in the middle, of `rl` and of `evaluate`, on two replicas: what is finished is not generated again, the end is the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)
PLUGIN = Path(__file__).parent / "evaluation_distribution"


class Runs:
    """Run folders in one place, and the generator's calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, name: str, *, kill: str = "") -> list[list[list[str]]]:
        """Run until it is done, or killed where `kill` says. For each rank the ids of every call that it has finished meanwhile."""
        calls = self.folder / "calls"
        calls.mkdir()
        path = os.pathsep.join(filter(None, (str(PLUGIN), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "R1MEGA_TEST_CALLS": str(calls), "R1MEGA_TEST_KILL": kill}
        command = [sys.executable, "-m", "r1mega", "run", "recipe=evaluated", f"output_dir={self.folder / name}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
        assert done.returncode == (1 if kill else 0), done.stdout[-2000:] + done.stderr[-3000:]
        assert not kill or f"rank {kill[0]} of 2 was killed by signal 9" in done.stderr, done.stderr[-2000:]
        found = [[json.loads(line) for line in path.read_text().splitlines()] if (path := calls / f"rank{rank}.jsonl").exists() else [] for rank in (0, 1)]
        calls.rename(self.folder / f"calls{sum(1 for _ in self.folder.iterdir())}")
        return found

    def file(self, name: str, stage: str, path: str) -> Path:
        return self.folder / name / "stages" / stage / "current" / path


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runs, list[list[list[list[str]]]]]:
    """An undisturbed run and one that was killed twice; the calls of each attempt."""
    runs = Runs(tmp_path_factory.mktemp("evaluations"))
    calls = [runs.run("undisturbed")]
    shutil.copytree(runs.folder / "undisturbed", runs.folder / "killed", symlinks=True)
    for stage in ("zero", "score"):
        shutil.rmtree(runs.folder / "killed" / "stages" / stage)
    # On each replica `zero` makes 4 units before, a rollout, 4 units after; `score` makes 4 units, of which the last is empty on replica 1.
    return runs, [*calls, runs.run("killed", kill="1:7"), runs.run("killed", kill="0:2"), runs.run("killed")]


def test_finished_units_are_not_generated_again(killed: tuple[Runs, list[list[list[list[str]]]]]) -> None:
    undisturbed, first, second, third = killed[1]
    for rank in (0, 1):
        whole = undisturbed[rank]
        assert [len(call) for call in whole] == [2] * 4 + [8] + [2] * 4 + ([3, 3, 3, 3] if rank == 0 else [3, 3, 3, 0])
        assert first[rank][:7] == whole[:7]
        assert len(first[rank]) <= 8, "the other replica may have finished the unit in which the kill came"
        assert second[rank][:4] == whole[7:11], "the rest of the final evaluation, then the first units of the stage `score`"
        assert third[rank] == whole[11:], "the units that both replicas had not finished"


def test_the_results_are_those_of_an_undisturbed_run(killed: tuple[Runs, list[list[list[list[str]]]]]) -> None:
    runs = killed[0]
    for stage, path in (("zero", "evaluation_before.json"), ("zero", "evaluation_after.json"), ("zero", "rollouts/samples_held_out.jsonl"),
                        ("zero", "artifacts/checkpoint/content.sha256"), ("score", "artifacts/report/report.json"), ("score", "rollouts/samples.jsonl")):
        mine, theirs = (runs.file(name, stage, path).read_bytes() for name in ("killed", "undisturbed"))
        assert mine == theirs, f"{stage}/{path} differs"
    samples = [json.loads(line) for line in runs.file("killed", "score", "rollouts/samples.jsonl").read_text().splitlines()]
    assert len({sample["completion"] for sample in samples}) > 3, "the samples say the same: this test would not see a difference"

    def metrics(name: str) -> dict[str, Any]:
        stages = json.loads((runs.folder / name / "summary.json").read_text())["stages"]
        return {stage: about["metrics"] for stage, about in stages.items() if stage != "base"}

    assert metrics("killed") == metrics("undisturbed")


def test_no_unit_is_kept_once_the_result_is_written(killed: tuple[Runs, list[list[list[list[str]]]]]) -> None:
    for name in ("undisturbed", "killed"):
        for stage in ("zero", "score"):
            assert not list(killed[0].file(name, stage, "rollouts/evaluations").glob("*")), (name, stage)
