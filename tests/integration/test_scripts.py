"""The shell scripts a newcomer meets first: what they say when something is missing, and that nothing to do takes no time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def run(*command: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)


def bash(script: Path, *arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the script from `cwd` without the settings of whoever runs the tests."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("R1MEGA_", "PIP_", "VIRTUAL_ENV"))}
    return run("bash", str(script), *arguments, cwd=cwd, env={**kept, **env})


@pytest.fixture
def setup_env(repo: Path) -> Path:
    return repo / "launch" / "setup_env.sh"


@pytest.mark.parametrize("script", ["launch/setup_env.sh", "launch/quickstart.sh", "tests/run.sh", ".ci/run"])
def test_scripts_are_valid_and_executable(repo: Path, script: str) -> None:
    assert run("bash", "-n", str(repo / script), cwd=repo).returncode == 0
    assert os.access(repo / script, os.X_OK), f"{script} is not executable"


def test_a_missing_interpreter_is_one_line(setup_env: Path, tmp_path: Path) -> None:
    done = bash(setup_env, cwd=tmp_path, R1MEGA_VENV=str(tmp_path / "venv"), R1MEGA_PYTHON="/no/such/python")
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines() == ["[setup] error: '/no/such/python' is not a usable Python 3.11 or 3.12: not found"]


def test_an_interpreter_without_venv_is_named_with_the_package_that_has_it(setup_env: Path, tmp_path: Path) -> None:
    bare = tmp_path / "python"  # as Debian ships it: the interpreter without ensurepip
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c \'import sys; sys.modules["ensurepip"] = None; exec(sys.stdin.read())\'\n')
    bare.chmod(0o755)
    done = bash(setup_env, cwd=tmp_path, R1MEGA_VENV=str(tmp_path / "venv"), R1MEGA_PYTHON=str(bare))
    assert done.returncode == 3, done.stderr
    assert "lacks the module ensurepip" in done.stderr
    assert "python3-venv" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_with_other_things_in_it_is_left_alone(setup_env: Path, tmp_path: Path) -> None:
    precious = tmp_path / "venv" / "precious"
    precious.parent.mkdir()
    precious.write_text("keep")
    done = bash(setup_env, cwd=tmp_path, R1MEGA_VENV=str(precious.parent), R1MEGA_PYTHON=sys.executable)
    assert done.returncode == 1
    assert "is not empty and not a Python environment" in done.stderr
    assert precious.read_text() == "keep"


def test_an_index_out_of_reach_is_said_in_one_line_with_the_log(setup_env: Path, tmp_path: Path) -> None:
    done = bash(setup_env, cwd=tmp_path, R1MEGA_VENV="venv", R1MEGA_PYTHON=sys.executable, PIP_CONFIG_FILE=os.devnull, PIP_RETRIES="1",
                PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert done.returncode == 4, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "cannot be reached (no network?)" in last
    assert str(tmp_path / "venv" / "setup.log") in last
    assert (tmp_path / "venv" / "setup.log").is_file()


def test_an_unknown_lane_or_argument_is_refused(repo: Path, setup_env: Path, tmp_path: Path) -> None:
    lane = bash(repo / "tests" / "run.sh", "units", cwd=tmp_path)
    assert lane.returncode == 2
    assert "no lane is called 'units'" in lane.stderr
    argument = bash(setup_env, "--extra", "dev", cwd=tmp_path)
    assert argument.returncode == 1
    assert "unknown argument '--extra'" in argument.stderr


@pytest.fixture
def checkout(repo: Path, tmp_path: Path) -> Path:
    """A checkout whose environment is ready, with an interpreter that prints its arguments and runs nothing."""
    launch, python = tmp_path / "checkout" / "launch", tmp_path / "venv" / "bin" / "python"
    launch.mkdir(parents=True)
    shutil.copy(repo / "launch" / "quickstart.sh", launch)
    (launch / "setup_env.sh").write_text("exit 0\n")
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    return launch.parent


@pytest.mark.parametrize(("given", "expected"), [
    ([], ["output_dir={checkout}/runs/r1_tiny", "recipe=r1_tiny"]),
    (["seed=1", "rollout.stop=['a b']"], ["output_dir={checkout}/runs/r1_tiny", "recipe=r1_tiny", "seed=1", "rollout.stop=['a b']"]),
    (["recipe=r1_zero_tiny"], ["output_dir={checkout}/runs/r1_zero_tiny", "recipe=r1_zero_tiny"]),
    (["output_dir=else where", "--dry-run"], ["recipe=r1_tiny", "output_dir=else where", "--dry-run"]),
])
def test_the_quickstart_runs_the_whole_recipe_unless_told_otherwise(checkout: Path, tmp_path: Path, given: list[str], expected: list[str]) -> None:
    done = bash(checkout / "launch" / "quickstart.sh", *given, cwd=tmp_path, R1MEGA_VENV=str(tmp_path / "venv"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["-m", "r1mega", "run", *(argument.format(checkout=checkout) for argument in expected)]


def test_the_quickstart_ends_where_the_set_up_fails(checkout: Path, tmp_path: Path) -> None:
    (checkout / "launch" / "setup_env.sh").write_text("exit 4\n")
    done = bash(checkout / "launch" / "quickstart.sh", cwd=tmp_path, R1MEGA_VENV=str(tmp_path / "venv"))
    assert (done.returncode, done.stdout) == (4, "")


def test_what_the_quickstart_starts_is_the_whole_recipe(repo: Path, tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "r1mega", "run", "recipe=r1_tiny", f"output_dir={tmp_path / 'run'}", "--dry-run", cwd=tmp_path,
               env={**os.environ, "PYTHONPATH": str(repo)})
    assert done.returncode == 0, done.stderr
    planned = {line.split()[0] for line in done.stdout.split("\n\n")[0].splitlines() if line.split()[1:2] == ["run"]}
    assert planned >= {"base", "zero", "cold_start", "reasoning_rl", "sft", "all_scenario_rl", "distill", "score_r1"}
    assert not (tmp_path / "run").exists(), "a dry run leaves nothing behind"


def test_the_summary_says_when_there_is_no_run(repo: Path, tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "r1mega.observe.summary", str(tmp_path), cwd=repo)
    assert done.returncode == 2
    assert "summary.json: no such file" in done.stderr
