"""The sft stage through the command line on samples that a test wrote: it learns, resumes bit-equal after kill -9, and refuses bad rows first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from r1mega_plugins.tasks.arithmetic import Arithmetic, ArithmeticConfig

from r1mega.data.chat import split_response
from r1mega.data.records import SampleRecord, write_samples

pytestmark = pytest.mark.timeout(300)
PLUGINS = tuple(Path(__file__).parent / name for name in ("sample_distribution", "kill_distribution"))
KILL_AT = 6


def run(folder: Path, *arguments: str, kill: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PLUGINS)), "OMP_NUM_THREADS": "1", "R1MEGA_TEST_KILL": kill}
    command = [sys.executable, "-m", "r1mega", "run", "recipe=sft_test", f"output_dir={folder / 'run'}", f"stages.samples.path={folder / 'samples'}",
               f"stages.extra.path={folder / 'extra'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


def steps(folder: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run/stages" / stage / "current/metrics.jsonl").read_text().splitlines()]


def result(folder: Path, stage: str) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "run/summary.json").read_text())["stages"][stage]["metrics"]
    return metrics


def digest(folder: Path, stage: str) -> str:
    return (folder / "run/stages" / stage / "current/artifacts/checkpoint/content.sha256").read_text()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run whose first fine-tuning was killed and continued, and what the driver said of the kill."""
    folder = tmp_path_factory.mktemp("sft")
    documents = Arithmetic(ArithmeticConfig(wrong_rate=0, malformed_rate=0, chain_rate=1)).documents(200, seed=1)
    samples = [SampleRecord(f"s{i}", question, *split_response(response)) for i, (question, response) in enumerate(documents)]
    write_samples(folder / "samples", [*samples[:150], SampleRecord("long", "1+1=", "1+1=2 " * 400, "2")])
    write_samples(folder / "extra", samples[150:])
    killed = run(folder, kill=f"killed:{KILL_AT}")
    assert killed.returncode == 1, killed.stderr[-3000:]
    rerun = run(folder)
    assert rerun.returncode == 0, rerun.stderr[-3000:]
    return folder, killed.stderr


def test_fine_tuning_lowers_the_loss_on_samples_never_trained_on(done: tuple[Path, str]) -> None:
    found = result(done[0], "undisturbed")
    assert found["validation_loss"] < 0.8 * found["validation_loss_before"], found
    assert found["loss"] < 0.8 * steps(done[0], "undisturbed")[0]["loss"]
    assert (found["dropped_too_long"], found["samples"] + found["held_out"]) == (1, 200)
    assert found["held_out"] > 5
    assert found["steps"] == 2 * -(-found["samples"] // 24) == len(steps(done[0], "undisturbed"))


def test_the_learning_rate_is_a_cosine_from_the_first_step_to_a_tenth(done: tuple[Path, str]) -> None:
    rates = [step["lr"] for step in steps(done[0], "undisturbed")]
    assert rates[0] == pytest.approx(2e-3)
    assert rates == sorted(rates, reverse=True)
    assert 2e-4 < rates[-1] < 2.5e-4
    assert all(0 < step["packing_fill"] <= 1 and step["tokens_per_second"] > 0 for step in steps(done[0], "undisturbed"))


def test_a_killed_run_ends_bit_equal(done: tuple[Path, str]) -> None:
    folder, said = done
    assert "killed by signal 9" in said
    assert [line for line in (folder / "run/starts.txt").read_text().splitlines() if line.startswith("killed")] == ["killed 0", "killed 4"]
    assert digest(folder, "killed") == digest(folder, "undisturbed") != digest(folder, "base")
    assert result(folder, "killed") == result(folder, "undisturbed")


def test_two_replicas_train_the_same_run(done: tuple[Path, str]) -> None:
    """The second loss is that after the first update, which both made at the same learning rate."""
    one, two = steps(done[0], "undisturbed"), steps(done[0], "wide")
    assert [step["loss"] for step in two[:2]] == pytest.approx([step["loss"] for step in one[:2]], rel=1e-4)
    assert result(done[0], "wide")["validation_loss_before"] == pytest.approx(result(done[0], "undisturbed")["validation_loss_before"], rel=1e-5)
    assert result(done[0], "wide")["validation_loss"] < result(done[0], "wide")["validation_loss_before"]


def test_a_malformed_row_is_one_error_before_training(done: tuple[Path, str], tmp_path: Path) -> None:
    folder = done[0]
    rows = (folder / "extra/samples.jsonl").read_text().splitlines()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/samples.jsonl").write_text("\n".join([*rows[:6], rows[6][:-9], *rows[7:]]))
    failed = run(folder, f"stages.samples.path={tmp_path / 'bad'}")
    assert failed.returncode == 2, failed.stderr[-3000:]
    assert "samples.jsonl:7: not valid JSON" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (folder / "run/stages/killed/current/metrics.jsonl").exists(), "training began"
