"""The whole graph, shortened: killed twice it ends as if it had not been; a changed key reruns one stage and what depends on it, a comment
nothing; one flipped byte is named before use, and mended.

The recipe is r1_tiny without most of its scorecard, given by an installed outside plugin so that its YAML can be edited. The tests share one run
folder and go in order. The long version of the first is `tests/soak/kill_graph.py`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "soak"))
from kill_graph import SHORT, digests
from shortened import FAULT_REWARDS, Run, doing, steps_done

pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(sys.platform != "linux", reason="watches processes through /proc")]
STAGES = ("world", "base", "zero", "cold_start_data", "cold_start", "reasoning_rl", "sft_data", "sft", "helpful_data", "reward_helpful", "reward_safety",
          "all_scenario_rl", "student_base", "distill", "score_r1")
KILLED: dict[str, Callable[[Path], bool]] = {  # stage -> whether it is in the middle of its work, by its folder: training, and sampling
    "zero": lambda folder: steps_done(folder) > 0,
    "sft_data": lambda folder: any(folder.rglob("unit_*.bank")),
}
LATE, KEY = "all_scenario_rl", "algorithm.kl_coefficient"
PLUGIN = """from r1mega import hookimpl

@hookimpl
def config_search_path():
    return "pkg://graph_conf"
"""


def _distribution(folder: Path, recipe: Path) -> Path:
    """An installed distribution with the recipe `graph`; returns the recipe's file."""
    info = folder / "graph_recipe-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: graph-recipe\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[r1mega]\ngraph = graph_recipe\n")
    (folder / "graph_recipe.py").write_text(PLUGIN)
    (folder / "graph_conf" / "recipe").mkdir(parents=True)
    (folder / "graph_conf" / "__init__.py").touch()
    whole = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    whole["stages"] = {name: whole["stages"][name] for name in STAGES}
    target = folder / "graph_conf" / "recipe" / "graph.yaml"
    target.write_text(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return target


def _overrides() -> tuple[str, ...]:
    kept = [text for text in SHORT[1:] if not text.startswith(("stages.", "+stages.")) or text.split(".")[1] in STAGES]
    return ("recipe=graph", "parallel=single", *kept, "stages.sft_data.max_prompts=48", "stages.score_r1.evaluation.max_problems=6")


@dataclass
class Whole:
    """The run folder that has been killed twice and finished, and the recipe it is of."""

    run: Run
    recipe: Path
    killed: list[str]  # what the stages were doing

    def again(self, *arguments: str) -> Run:
        """The same command with more arguments, run to its end; `process.returncode` and `said` tell how it went."""
        run = replace(self.run, arguments=arguments)
        run.start()
        run.wait(600)
        return run

    def status(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "r1mega", "status", str(self.run.folder), *arguments], capture_output=True, text=True, timeout=60)

    def manifests(self) -> dict[str, tuple[str, bytes, int]]:
        """Stage -> its folder's name, its manifest, and when that was written."""
        paths = {name: self.run.stage(name) / "manifest.json" for name in STAGES}
        return {name: (path.resolve().parent.name, path.read_bytes(), path.stat().st_mtime_ns) for name, path in paths.items()}


def _wait_for(what: str, condition: Callable[[], bool], run: Run) -> None:
    began = time.monotonic()
    assert run.process
    while not condition():
        assert run.process.poll() is None, f"the run ended before {what}: {run.process.communicate()[1]}"
        assert time.monotonic() - began < 400, f"after 400 s still not: {what}"
        time.sleep(0.02)


def _kill_in(run: Run, stage: str) -> str:
    """Run until `stage` is in the middle of its work, kill the driver and all ranks, and tell what it was doing."""
    run.start()
    folder = run.stage(stage)
    _wait_for(f"'{stage}' is at work", lambda: folder.exists() and KILLED[stage](folder), run)
    what = doing(folder)
    run.end()
    run.wait(60)
    return what


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("graph")
    recipe = _distribution(folder / "installed", repo / "conf" / "recipe" / "r1_tiny.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder / "installed"), str(FAULT_REWARDS), os.environ.get("PYTHONPATH")))))
        run = Run(folder / "run", recipe=_overrides())
        killed = [_kill_in(run, stage) for stage in KILLED]
        done = Whole(run, recipe, killed)
        finished = done.again()
        assert finished.process
        assert finished.process.returncode == 0, finished.said
        yield done


def test_killed_twice_it_ends_as_if_it_had_not_been(whole: Whole) -> None:
    """The two stages that were killed are made again, undisturbed and from the same inputs: every digest must be what it was."""
    attempts = {name: json.loads(manifest)["epoch"] for name, (_, manifest, _) in whole.manifests().items()}
    assert {name: count for name, count in attempts.items() if count > 1} == dict.fromkeys(KILLED, 2), f"killed while {whole.killed}"
    assert all("banked" in what or "step" in what or what in ("saving", "exporting") for what in whole.killed), whole.killed
    before, manifests = digests(whole.run), whole.manifests()
    again = whole.again(*(word for stage in KILLED for word in ("--rebuild", stage)))
    assert again.process
    assert again.process.returncode == 0, again.said
    assert digests(whole.run) == before
    after = whole.manifests()
    assert [name for name in STAGES if after[name] != manifests[name]] == list(KILLED), "what was made from them stays done"
    for stage in KILLED:
        assert len(list(whole.run.folder.glob(f"stages/{stage}/*.aside-*/manifest.json"))) == 1, "the earlier result is kept"
        assert f"{stage}: made again with the same digests" in again.said


def test_a_comment_changes_nothing(whole: Whole) -> None:
    before = whole.manifests()
    whole.recipe.write_text(f"# about the graph\n{whole.recipe.read_text(encoding='utf-8')}# the end\n", encoding="utf-8")
    again = whole.again()
    assert again.process
    assert again.process.returncode == 0, again.said
    assert re.findall(r"^(\w+): done before", again.said, re.MULTILINE) == list(STAGES)
    assert whole.manifests() == before


def _flip(path: Path) -> None:
    """Change one bit in the middle, and nothing that a look at the folder would show."""
    there, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns))


def test_a_flipped_byte_is_named_and_a_changed_key_reruns_its_stage_alone(whole: Whole) -> None:
    """Both at once: the change makes a stage run that needs the damaged checkpoint."""
    change = f"stages.{LATE}.{KEY}=0.07"
    planned = subprocess.run([sys.executable, "-m", "r1mega", "run", f"output_dir={whole.run.folder}", *whole.run.recipe, change, "--dry-run"],
                             capture_output=True, text=True, timeout=60)
    plan = [line.split(maxsplit=2) for line in planned.stdout.split("\n\n")[0].splitlines()]
    assert {name: rest for name, action, rest in plan if action == "run"} == {
        LATE: f"rl, 1 rank: {KEY}: 0.05 -> 0.07", "score_r1": f"evaluate, 1 rank: input policy: {LATE} has to run first"}, planned.stderr

    before, made = whole.manifests(), digests(whole.run)
    damaged = next(iter((whole.run.stage("sft") / "artifacts" / "checkpoint").glob("*.distcp"))).resolve()
    _flip(damaged)
    assert whole.status().returncode == 0, "status reads no weights"
    seen = whole.status("--verify", "--json")
    assert seen.returncode == 1
    assert {name: one["state"] for name, one in json.loads(seen.stdout)["stages"].items() if one["state"] != "done"} == {"sft": "damaged"}

    refused = whole.again(change)
    assert refused.process
    assert refused.process.returncode == 1
    last = refused.said.splitlines()[-1]
    assert f"stage '{LATE}' needs sft.checkpoint" in last
    assert f"{damaged} is damaged" in last
    stale = json.loads(whole.status("--json").stdout)["stages"]
    assert stale[LATE]["reasons"] == [f"{KEY}: 0.05 -> 0.07"]
    assert {name for name, one in stale.items() if one["state"] != "done"} == {LATE, "score_r1"}

    program, *arguments = shlex.split(last.partition("make it again: ")[2])
    assert program == "r1mega"
    mended = subprocess.run([sys.executable, "-m", "r1mega", *arguments], capture_output=True, text=True, timeout=600)
    assert mended.returncode == 0, mended.stderr
    assert "sft: made again with the same digests" in mended.stderr
    after = whole.manifests()
    assert {name for name in STAGES if after[name] != before[name]} == {"sft", LATE, "score_r1"}
    assert before["sft"][0] == after["sft"][0]
    assert (whole.run.folder / "stages" / LATE / before[LATE][0] / "manifest.json").read_bytes() == before[LATE][1], "a stale result is kept"
    now = digests(whole.run)
    assert [name for name in made if now[name] != made[name]] == [f"{LATE}.checkpoint", "score_r1.report"]
    (aside,) = whole.run.folder.glob("stages/sft/*.aside-1/artifacts/checkpoint")
    assert (aside / damaged.name).is_file()
    assert whole.status("--verify").returncode == 0
