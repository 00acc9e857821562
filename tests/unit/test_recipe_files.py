"""Files that are whole or absent, artifacts that are what their manifest says, one run per folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from r1mega.errors import StageFailed, UserError
from r1mega.recipe import artifacts, files, lock, rebuild
from r1mega.recipe.artifacts import Manifest
from r1mega.recipe.context import StageContext
from r1mega.recipe.graph import GraphNode

NODE = GraphNode("base", "pretrain", "1", "toys", "", {}, {}, {"checkpoint": "Checkpoint"}, {})


def manifest(folder: Path) -> Manifest:
    return Manifest("base", "pretrain", "toys", "f00", {}, "", {}, 1, state="done", artifacts=artifacts.record(NODE, folder))


@pytest.fixture
def stage_dir(tmp_path: Path) -> Path:
    checkpoint = tmp_path / "artifacts" / "checkpoint"
    (checkpoint / "deep").mkdir(parents=True)
    (checkpoint / "weights.bin").write_bytes(b"\0" * 1000)
    (checkpoint / "deep" / "config.json").write_text("{}")
    return tmp_path


def test_json_is_valid_whatever_the_metrics(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"nan": math.nan, "inf": np.float32("inf"), "one": np.int64(1), "half": np.float32(0.5),
                                           "row": np.arange(2), "yes": np.bool_(True), "path": Path("x"), 3: (1, 2)})
    text = (tmp_path / "a.json").read_text()
    strict = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert strict == {"nan": None, "inf": None, "one": 1, "half": 0.5, "row": [0, 1], "yes": True, "path": "x", "3": [1, 2]}
    assert os.listdir(tmp_path) == ["a.json"], "no temporary file stays"


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(tmp_path / "a", "\ud800")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: not valid JSON"):
        Manifest.load(tmp_path)


def test_symlink_is_swapped(tmp_path: Path) -> None:
    for target in ("a", "b"):
        files.point(tmp_path / "current", target)
        assert os.readlink(tmp_path / "current") == target


def test_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.digests(tmp_path) == {"a": hashlib.sha256(b"abc").hexdigest()}


def test_manifest_round_trip(stage_dir: Path) -> None:
    before = manifest(stage_dir)
    before.save(stage_dir)
    assert Manifest.load(stage_dir) == before
    assert sorted(before.artifacts["checkpoint"]["files"]) == ["deep/config.json", "weights.bin"]
    assert artifacts.damage(before, stage_dir, "checkpoint") is None
    assert before.missing(NODE, stage_dir) == []


def test_any_flipped_byte_is_found(stage_dir: Path) -> None:
    recorded = manifest(stage_dir)
    weights = stage_dir / "artifacts/checkpoint/weights.bin"
    there = weights.stat()
    with weights.open("r+b") as file:
        file.seek(567)
        file.write(b"\1")
    os.utime(weights, ns=(there.st_atime_ns, there.st_mtime_ns))  # damage does not announce itself
    assert f"{weights} is damaged" in str(artifacts.damage(recorded, stage_dir, "checkpoint"))


def test_lost_and_foreign_files_are_found(stage_dir: Path) -> None:
    recorded = manifest(stage_dir)
    (stage_dir / "artifacts/checkpoint/more").write_text("")
    assert "more appeared after it was recorded" in str(artifacts.damage(recorded, stage_dir, "checkpoint"))
    (stage_dir / "artifacts/checkpoint/more").unlink()
    (stage_dir / "artifacts/checkpoint/weights.bin").unlink()
    assert "weights.bin is missing" in str(artifacts.damage(recorded, stage_dir, "checkpoint"))


def test_stated_digest_stands_for_the_content(stage_dir: Path) -> None:
    (stage_dir / "artifacts/checkpoint/content.sha256").write_text("cafe\n")
    assert manifest(stage_dir).artifacts["checkpoint"]["digest"] == "cafe"


def test_output_that_was_not_written(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="ended without its output 'checkpoint'"):
        artifacts.record(NODE, tmp_path)


HOLD = """
import sys, time, pathlib
from r1mega.recipe import lock
with lock.hold(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


def test_lock_is_refused_with_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"another run is at work in {tmp_path}: process {process.pid} on "), lock.hold(path):
            pytest.fail("two holders")
        assert str(process.pid) in (lock.holder(path) or "")
    finally:
        process.kill()
        process.communicate()
    assert lock.holder(path) is None
    with lock.hold(path):
        assert f"process {os.getpid()} " in (lock.holder(path) or "")


def test_every_attempt_has_its_epoch(tmp_path: Path) -> None:
    def context(epoch: int) -> StageContext:
        return StageContext("base", None, tmp_path, tmp_path, {}, 0, 1, 0, epoch)

    assert lock.next_epoch(tmp_path) == 1
    context(1).check_epoch()
    assert lock.next_epoch(tmp_path) == 2
    context(2).check_epoch()
    with pytest.raises(StageFailed, match="attempt 1 of rank 0 has been superseded by attempt 2"):
        context(1).check_epoch()


def test_an_attempt_is_fenced_also_when_its_folder_was_set_aside(tmp_path: Path) -> None:
    stage_dir = tmp_path / "f00"
    for expected in (1, 2, 3):
        stage_dir.mkdir()
        assert lock.next_epoch(stage_dir) == expected
        assert rebuild.set_aside(stage_dir, whole=True) == tmp_path / f"f00.aside-{expected}"
    assert rebuild.set_aside(stage_dir, whole=True) is None


def test_damaged_artifacts_go_aside_and_checkpoints_stay(stage_dir: Path) -> None:
    manifest(stage_dir).save(stage_dir)
    (stage_dir / "checkpoints").mkdir()
    aside = rebuild.set_aside(stage_dir, whole=False)
    assert aside is not None
    try:
        assert sorted(path.name for path in aside.iterdir()) == ["artifacts", "manifest.json"]
        assert (aside / "artifacts/checkpoint/weights.bin").stat().st_size == 1000
        assert sorted(path.name for path in stage_dir.iterdir()) == ["checkpoints", "manifest.json"]
        assert Manifest.load(stage_dir).missing(NODE, stage_dir) == ["checkpoint"]  # type: ignore[union-attr]
    finally:
        shutil.rmtree(aside)
