"""What status says of each node, from the files of a run folder alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from r1mega.errors import UserError
from r1mega.recipe import artifacts, files, fingerprint, status
from r1mega.recipe.artifacts import Manifest, RunFolder
from r1mega.recipe.assess import assess, headline
from r1mega.recipe.graph import Graph, GraphNode


def graph(**settings: dict[str, Any]) -> Graph:
    """base -> zero -> eval."""
    nodes: dict[str, GraphNode] = {}
    source = None
    for name in ("base", "zero", "eval"):
        inputs: dict[str, str] = {"policy": f"{source}.checkpoint"} if source else {}
        nodes[name] = GraphNode(name, "toy", "1", "toys", "", inputs, {"policy": "Checkpoint?"}, {"checkpoint": "Checkpoint"},
                                settings.get(name, {"steps": 1}))
        source = name
    return Graph(nodes)


def make(folder: RunFolder, wanted: Graph, name: str, **fields: Any) -> None:
    """Do as the runner does for a stage that succeeds, unless `fields` says otherwise."""
    verdict = assess(wanted, folder)[name]
    assert verdict.fingerprint, f"{name} cannot run yet"
    assert verdict.basis
    stage_dir = folder.stage(name, verdict.fingerprint)
    (stage_dir / "artifacts" / "checkpoint").mkdir(parents=True)
    (stage_dir / "artifacts" / "checkpoint" / "weights").write_text(f"{name} {verdict.fingerprint}")
    record = artifacts.record(verdict.node, stage_dir)
    given = {"state": "done", "epoch": 1, "seconds": 2.0, "metrics": {"loss": 0.25}, "artifacts": record, **fields}
    Manifest(name, "toy", "toys", verdict.fingerprint, verdict.basis, "", dict(verdict.inputs), 1, **given).save(stage_dir)
    files.point(folder.stage(name), verdict.fingerprint)


def write(folder: RunFolder, wanted: Graph, overrides: Sequence[str] = ()) -> None:
    folder.config.write_text(yaml.safe_dump({"overrides": list(overrides), "stages": {name: node.tree for name, node in wanted.nodes.items()}}))
    files.write_json(folder.graph, wanted.to_json())


def states(folder: RunFolder, wanted: Graph) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {name: (verdict.state, verdict.reasons) for name, verdict in assess(wanted, folder).items()}


def test_from_nothing_to_done(tmp_path: Path) -> None:
    folder, wanted = RunFolder(tmp_path), graph()
    assert states(folder, wanted) == {"base": ("pending", ("not run yet",)), "zero": ("pending", ("input policy: base has to run first",)),
                                      "eval": ("pending", ("input policy: zero has to run first",))}
    for name in wanted.nodes:
        make(folder, wanted, name)
    assert {state for state, _ in states(folder, wanted).values()} == {"done"}


def test_changed_key_makes_a_node_and_its_descendants_stale(tmp_path: Path) -> None:
    folder, wanted = RunFolder(tmp_path), graph()
    for name in wanted.nodes:
        make(folder, wanted, name)
    changed = graph(zero={"steps": 5})
    assert states(folder, changed) == {"base": ("done", ()), "zero": ("stale", ("steps: 1 -> 5",)),
                                       "eval": ("stale", ("input policy: zero has to run first",))}
    make(folder, changed, "zero")
    assert states(folder, changed)["eval"] == ("stale", ("input policy changed",))
    assert states(folder, wanted)["zero"] == ("done", ()), "the earlier result is still there"


def test_failed_interrupted_and_lost(tmp_path: Path) -> None:
    folder, wanted = RunFolder(tmp_path), graph()
    make(folder, wanted, "base", state="failed", error="out of luck", epoch=3)
    assert states(folder, wanted)["base"] == ("failed", ("attempt 3: out of luck",))
    make_again = folder.stage("base") / "manifest.json"
    make_again.write_text(make_again.read_text().replace('"failed"', '"running"'))
    assert states(folder, wanted)["base"][0] == "interrupted", "running, says the manifest, but nobody holds the lock"
    make_again.write_text(make_again.read_text().replace('"running"', '"done"'))
    assert states(folder, wanted)["base"] == ("done", ())
    (folder.stage("base") / "artifacts/checkpoint/weights").unlink()
    (folder.stage("base") / "artifacts/checkpoint").rmdir()
    assert states(folder, wanted)["base"] == ("pending", ("its output checkpoint is gone",))


def test_show_json_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, wanted = RunFolder(tmp_path), graph()
    make(folder, wanted, "base", metrics={"pass_at_1_before": 0.5, "pass_at_1": 0.875, "steps": 3})
    write(folder, wanted)
    assert status.show(tmp_path, as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["running_by"] is None
    assert shown["stages"]["base"]["headline"] == "pass_at_1 0.5 -> 0.875"
    assert shown["stages"]["base"]["seconds"] == 2.0
    assert shown["stages"]["zero"] == {"kind": "toy", "state": "pending", "reasons": ["not run yet"], "seconds": None, "metrics": {},
                                       "headline": "", "fingerprint": assess(wanted, folder)["zero"].fingerprint}
    assert status.show(tmp_path, as_json=False) == 0
    table = capsys.readouterr().out
    assert "pass_at_1 0.5" in table
    assert "pending" in table


def test_no_run_here(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run here"):
        status.show(tmp_path, as_json=False)


def test_headline() -> None:
    assert headline({"note": "x", "done": True, "loss": 0.123456}) == "loss 0.1235"
    assert headline({}) == ""


def test_fingerprint_names_the_folder(tmp_path: Path) -> None:
    folder, wanted = RunFolder(tmp_path), graph()
    make(folder, wanted, "base")
    assert folder.stage("base").resolve().name == fingerprint.fingerprint(fingerprint.basis_of(wanted.nodes["base"], {}))


def test_damage_is_found_only_where_it_is_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, wanted = RunFolder(tmp_path), graph()
    for name in wanted.nodes:
        make(folder, wanted, name)
    write(folder, wanted, overrides=["recipe=toy", "output_dir=a b"])
    assert status.show(tmp_path, as_json=True, verify=True) == 0
    weights = folder.stage("eval") / "artifacts/checkpoint/weights"  # nothing reads it
    weights.write_text("eval")
    capsys.readouterr()
    assert status.show(tmp_path, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["eval"]["state"] == "done"
    assert status.show(tmp_path, as_json=True, verify=True) == 1
    shown = json.loads(capsys.readouterr().out)["stages"]
    assert (shown["zero"]["state"], shown["eval"]["state"]) == ("done", "damaged")
    assert "artifacts/checkpoint/weights is damaged" in shown["eval"]["reasons"][0]
    assert status.show(tmp_path, as_json=False, verify=True) == 1
    assert capsys.readouterr().err.endswith("r1mega run recipe=toy 'output_dir=a b' --rebuild-damaged\n")
