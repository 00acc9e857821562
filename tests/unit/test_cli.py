"""The command line in its own process: exit codes, one-line errors, and how little it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from r1mega import cli, plugins


def r1mega(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "r1mega", *arguments], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **environment})


def test_help_lists_every_command_and_imports_little() -> None:
    script = ("import sys\nfrom r1mega.cli import main\ncode = main(['--help'])\n"
              "heavy = [name for name in ('torch', 'hydra', 'rich', 'megatron') if name in sys.modules]\nassert code == 0 and not heavy, heavy")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in cli.COMMANDS:
        assert f"  {command}" in done.stdout


@pytest.mark.parametrize(("arguments", "words"), [
    (["rnu"], ["there is no command 'rnu'", "Did you mean 'run'?"]),
    (["run"], ["Give recipe=<name>"]),
    (["run", "recipe=no_such_recipe"], ["there is no recipe 'no_such_recipe'"]),
    (["run", "recipe"], ["override 'recipe': expected key=value"]),
])
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("r1mega: ")
    for word in words:
        assert word in error


def test_the_stack_trace_is_there_for_who_asks() -> None:
    quiet, loud = r1mega("run"), r1mega("run", R1MEGA_TRACEBACK="1")
    assert quiet.returncode == 2
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr
    assert "ConfigError" in loud.stderr


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"r1mega {command}" in capsys.readouterr().out


def test_no_command_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: r1mega COMMAND" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("r1mega 0.")


def test_plugins_lists_all_of_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["kind"], row["name"]) for row in rows} == {(plugin.kind, plugin.name) for plugin in plugins.load().registry}
    assert all(set(row) == {"kind", "name", "owner", "version", "doc"} for row in rows)
    assert cli.main(["plugins"]) == 0
    table = capsys.readouterr().out
    assert all(row["name"] in table for row in rows)


def test_a_plugin_that_raises_at_import_stops_the_command(tmp_path: Path) -> None:
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('out of coffee')\n")
    info = tmp_path / "broken_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[r1mega]\nbroken = broken_plugin\n")
    done = r1mega("plugins", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "broken (broken-plugin 1.0)" in done.stderr
    assert "out of coffee" in done.stderr


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], Any, str]:
    """(plan lines, the settings read back, what is still to be set) of a dry run that ends well."""
    assert cli.main(["run", "--dry-run", *arguments]) == 0
    plan, settings, *end = capsys.readouterr().out.split("\n\n")
    return plan.splitlines(), yaml.safe_load(settings), "".join(end)


def test_the_dry_run_of_the_papers_recipe_shows_every_stage_and_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, settings, missing = dry_run(capsys, "recipe=r1", f"output_dir={tmp_path}")
    stages = settings["stages"]
    assert [line.split()[0] for line in plan] == list(stages)
    assert len(stages) == 22
    assert all(line.split()[1] == "run" for line in plan)
    assert any("rl, 512 ranks" in line for line in plan)
    assert (stages["all_scenario_rl"]["config"]["steps"], stages["all_scenario_rl"]["config"]["rollout"]["temperature"]) == (1700, 0.7)
    assert stages["sft"]["inputs"]["policy"] == "base.checkpoint"
    assert missing.strip() == ("to run it, set: stages.base.path, stages.reasoning_prompts.prompts_path, stages.all_prompts.prompts_path, "
                               "stages.general.samples_path, stages.preference_prompts.prompts_path, task.path")
    assert not list(tmp_path.iterdir())


STUDENT = "recipe=distill_qwen_1_5b"


def test_a_dry_run_with_paths_misses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "samples.jsonl").write_text('{"id": "1", "prompt": "q", "reasoning": "", "response": "r"}\n')
    (tmp_path / "aime.jsonl").write_text('{"problem": "1 + 1", "answer": "2"}\n')
    given = [f"stages.base.path={tmp_path}", f"stages.data.samples_path={tmp_path / 'samples.jsonl'}", f"task.path={tmp_path / 'aime.jsonl'}"]
    plan, settings, missing = dry_run(capsys, STUDENT, *given, f"output_dir={tmp_path / 'run'}")
    assert len(plan) == 5
    assert not missing
    assert settings["stages"]["student"]["config"]["optimizer"]["lr"] == 1e-4
    _, settings, missing = dry_run(capsys, STUDENT, *given[:1], f"output_dir={tmp_path / 'run'}", "--from", "student")
    assert list(settings["stages"]) == ["student", "score_student", "export"]
    assert missing.strip() == "to run it, set: stages.score_student.task.path"  # of the stages it would run


def test_a_path_that_is_missing_stops_before_any_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", STUDENT, f"output_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "set stages.base.path, stages.data.samples_path, stages.score_student.task.path" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["stages.base.path", "stages.data.samples_path", "task.path"])
def test_a_path_that_is_wrong_is_an_error_even_of_a_dry_run(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--dry-run", STUDENT, f"{key}={tmp_path / 'nowhere'}", f"output_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{tmp_path / 'nowhere'}" in error
    assert "no such file or folder" in error
