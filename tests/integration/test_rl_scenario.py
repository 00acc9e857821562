"""The schedules of `rl` in real processes: terms, prompts and lengths that change at a step, a reward with a scorer, the monitor; and a kill."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLUGINS = tuple(Path(__file__).parent / name for name in ("scenario_distribution", "kill_distribution"))


def run(folder: Path, *arguments: str, code: int = 0, kill: str = "") -> str:
    path = os.pathsep.join(filter(None, (*map(str, PLUGINS), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "R1MEGA_TEST_KILL": kill}
    command = [sys.executable, "-m", "r1mega", "run", "recipe=scenario", f"output_dir={folder}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def stage(folder: Path) -> Path:
    return folder / "stages" / "rl" / "current"


def results(folder: Path) -> dict[str, Any]:
    """The closing metrics."""
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())["stages"]["rl"]["metrics"]
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in json.loads(line).items() if key not in ("time", "tokens_per_second") and not key.endswith("seconds")}
            for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenario") / "run"
    run(folder)
    return folder


def test_each_term_counts_in_its_window_for_its_domain(done: Path) -> None:
    steps = lines(stage(done) / "metrics.jsonl")
    assert ["reward/helpful" in step for step in steps] == [False, False, True, True, True, True]
    assert ["reward/language_consistency" in step for step in steps] == [True] * 4 + [False] * 2
    assert all("reward/accuracy" in step and "reward/format" in step for step in steps)
    for sample in lines(stage(done) / "rollouts" / "samples.jsonl"):
        general = sample["id"].startswith("g")
        assert ("accuracy" in sample["parts"], "helpful" in sample["parts"]) == (not general, general), sample
        assert sample["reward"] == pytest.approx(sum(sample["parts"].values())), sample
        assert not general or sample["step"] > 2, sample


def test_the_cap_on_the_length_rises_at_its_step(done: Path) -> None:
    longest = {1: 0, 3: 0, 5: 0}
    for sample in lines(stage(done) / "rollouts" / "samples.jsonl"):
        longest[sample["step"]] = max(longest[sample["step"]], sample["length"])
    assert longest == {1: 16, 3: 16, 5: 24}


def test_the_monitor_looks_and_both_ends_report_languages(done: Path) -> None:
    steps = lines(stage(done) / "metrics.jsonl")
    checks = [json.loads((stage(done) / f"monitor_{step:08d}.json").read_text()) for step in (0, 2, 4)]
    assert [check["reward"] for check in checks] == [steps[0]["reward"], steps[2]["reward"], steps[4]["reward"]]
    assert [len(check["rates"]) for check in checks] == [4, 4, 4]
    assert len({tuple(check["regime"]) for check in checks}) == 3, "domains and terms change at both steps"
    assert all(step["monitor/flag"] == 0 for step in steps)
    metrics = results(done)
    assert metrics["monitor_flags"] == 0
    assert {"language_consistency", "language_consistency_before", "format_rate", "format_rate_before", "pass_at_1_before"} <= set(metrics)


def test_every_sample_tells_its_advantage(done: Path) -> None:
    groups: dict[str, list[dict[str, Any]]] = {}
    for sample in lines(stage(done) / "rollouts" / "samples.jsonl"):
        groups.setdefault(f"{sample['step']} {sample['id'].rpartition('#')[0]}", []).append(sample)
    told = [sample["advantage"] for group in groups.values() for sample in group]
    assert any(advantage is not None for advantage in told)
    assert any(advantage is None for advantage in told), "groups whose samples are all worth the same give no gradient"
    for group in groups.values():
        ranked = sorted(group, key=lambda sample: sample["reward"])
        if ranked[0]["reward"] < ranked[-1]["reward"]:
            assert ranked[0]["advantage"] < 0 < ranked[-1]["advantage"], group


def test_the_compute_of_the_steps_adds_up(done: Path) -> None:
    steps, metrics = lines(stage(done) / "metrics.jsonl"), results(done)
    for kind in ("training", "inference", "generation"):
        assert metrics[f"flops_{kind}"] == sum(step[f"flops_{kind}"] for step in steps) > 0, kind
    assert metrics["model_flops"] == sum(step["flops"] for step in steps)
    assert [step["flops_generation"] > 0 for step in steps] == [True, False] * 3, "a rollout's stand at the first of its two updates"
    evaluations = [*stage(done).glob("evaluation_*.json"), *stage(done).glob("monitor_*.json")]
    assert len(evaluations) == 5, "before, after, and the monitor's three looks"
    assert metrics["flops_evaluation"] == sum(json.loads(path.read_text())["flops_evaluation"] for path in evaluations)


def test_a_budget_ends_the_run_at_the_step_that_spends_it_also_after_a_kill(done: Path, tmp_path: Path) -> None:
    """In the middle of a rollout: its second update is not made."""
    again = tmp_path / "run"
    shutil.copytree(done, again, symlinks=True)
    steps = lines(stage(done) / "metrics.jsonl")[:3]
    budget = f"stages.rl.max_flops={sum(step['flops'] for step in steps) - 1:.0f}"
    assert "was killed by signal 9" in run(again, budget, code=1, kill="rl:3")
    run(again, budget)
    assert lines(stage(again) / "metrics.jsonl") == steps
    metrics = results(again)
    assert metrics["steps"] == 3
    assert metrics["model_flops"] == sum(step["flops"] for step in steps)
    assert {"pass_at_1", "pass_at_1_before"} <= set(metrics)
    assert (stage(again) / "artifacts/checkpoint/content.sha256").is_file()


def test_a_killed_run_ends_bit_equal(done: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(done, again, symlinks=True)
    shutil.rmtree(again / "stages" / "rl")
    assert "was killed by signal 9" in run(again, code=1, kill="rl:3")
    run(again)
    for name in ("artifacts/checkpoint/content.sha256", "rollouts/samples.jsonl", "rollouts/samples_held_out.jsonl", "monitor_00000004.json"):
        assert (stage(again) / name).read_bytes() == (stage(done) / name).read_bytes(), name
    assert lines(stage(again) / "metrics.jsonl") == lines(stage(done) / "metrics.jsonl")
    assert results(again) == results(done)
