"""The summary of a run reads whatever a run left behind, whole or not."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from r1mega.observe import summary


def run_folder(folder: Path, stages: dict[str, Any], rows: list[str] | None = None) -> Path:
    (folder / "summary.json").write_text(json.dumps({"recipe": "r1_zero_tiny", "seed": 3, "stages": stages}))
    rollouts = folder / "stages" / "zero" / "current" / "rollouts"
    rollouts.mkdir(parents=True)
    (rollouts / "samples.jsonl").write_text("\n".join(rows or []))
    return folder


def shown(folder: Path) -> str:
    output = io.StringIO()
    summary.show(folder, Console(file=output, width=160))
    return output.getvalue()


def test_accuracy_before_and_after_with_its_interval(tmp_path: Path) -> None:
    text = shown(run_folder(tmp_path, {
        "base": {"state": "done", "seconds": 90.25, "metrics": {"loss": 1.0}},
        "zero": {"state": "done", "seconds": 120, "metrics": {"pass_at_1_before": 0.3125, "pass_at_1": 0.9, "pass_at_1_ci95": [0.88, 0.92],
                                                               "pass_at_1_ci95_before": [0.3, 0.325]}}}))
    assert "zero: pass@1 0.312 [0.300, 0.325] before, 0.900 [0.880, 0.920] after" in text
    assert str(tmp_path / "summary.json") in text.replace("\n", "")
    assert "report.html" not in text, "a file that is not there must not be named"


def test_the_last_steps_best_and_worst_samples_are_shown(tmp_path: Path) -> None:
    old = [json.dumps({"step": 1, "prompt": "1+1?", "completion": "old", "reward": 2.0})]
    new = [json.dumps({"step": 9, "prompt": "2+2?", "completion": f"[b]text{reward}[/b]", "reward": reward, "answer": "4"})
           for reward in (0.0, 0.5, 1.0, 2.0)]
    folder = run_folder(tmp_path, {"zero": {"state": "done", "metrics": {"pass_at_1_before": 0.1, "pass_at_1": 0.5}}}, old + new + ['{"cut'])
    text = shown(folder)
    assert [reward for reward in ("0.0", "0.5", "1.0", "2.0") if f"[b]text{reward}[/b]" in text] == ["0.0", "1.0", "2.0"]
    assert "old" not in text
    assert "reference answer 4" in text


def test_the_scorecard_names_each_model_and_what_was_measured(tmp_path: Path) -> None:
    def scored(pass_at_1: float, **more: float) -> dict[str, Any]:
        metrics = {"pass_at_1": pass_at_1, "pass_at_1_ci95": [pass_at_1 - 0.02, pass_at_1 + 0.02], "mean_length": 19.14, **more}
        return {"state": "done", "seconds": 30, "metrics": metrics}

    trained = {"state": "done", "seconds": 30, "metrics": {"pass_at_1_before": 0.1, "pass_at_1": 0.5}}
    names = ("base", "zero", "cold_start", "reasoning_rl", "sft", "all_scenario_rl")
    folder = run_folder(tmp_path, {**dict.fromkeys(names, trained), "score_zero": scored(0.958, language_consistency=0.8206), "liked": scored(0.753)},
                        [json.dumps({"step": 1, "completion": f"sample {reward}", "reward": reward}) for reward in (0, 1)])
    measured = {"score_zero": "zero.checkpoint", "liked": "all_scenario_rl.checkpoint"}
    nodes = {**{name: {"stage": "rl"} for name in names}, **{name: {"stage": "evaluate", "inputs": {"policy": of}} for name, of in measured.items()}}
    (folder / "graph.json").write_text(json.dumps({"nodes": nodes}))
    metrics = {"score_zero": "accuracy", "liked": "preference"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"stages": {name: {"evaluation": {"metric": metric}} for name, metric in metrics.items()}}))
    lines = [" ".join(line.split()) for line in shown(folder).splitlines()]
    assert "zero (R1-Zero) accuracy 0.958 ± 0.020 0.821 - 19.1" in lines
    assert "all_scenario_rl (R1) preference 0.753 ± 0.020 - - 19.1" in lines
    assert "8 of 8 stages done, in 4.0 minutes" in lines
    assert any("sample 1" in line for line in lines)
    assert not any("sample 0" in line for line in lines), "of several RL stages one sample each, the best"
    assert not any("before" in line for line in lines)
    assert f"stages: {folder / 'stages'}" in lines


@pytest.mark.parametrize("zero", [{}, {"state": "running", "metrics": None}, {"metrics": {"pass_at_1": None}},
                                  {"metrics": {"pass_at_1": float("nan")}}])
def test_missing_metrics_leave_gaps(tmp_path: Path, zero: dict[str, Any]) -> None:
    assert "r1_zero_tiny, seed 3" in shown(run_folder(tmp_path, {"zero": zero}))


@pytest.mark.parametrize(("content", "expected"), [(None, "no such file"), ("{", "cannot be read"), ("[]", "expected an object with 'stages'")])
def test_no_run_is_one_line_and_exit_code_2(tmp_path: Path, content: str | None, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    assert summary.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("value", "expected"), [(0.5, "0.500"), (1, "1.000"), (0, "0.000"), (37, "37"), (123.4, "123"), (None, "-")])
def test_numbers_are_short(value: object, expected: str) -> None:
    assert summary.number(value) == expected
