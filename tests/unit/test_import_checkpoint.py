"""The import stage: only a whole, undamaged checkpoint comes in."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from r1mega_plugins.stages.import_checkpoint import Import, ImportConfig

from r1mega.errors import ConfigError, DataError
from r1mega.recipe.context import StageContext


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.model").write_bytes(b"pieces")
    (folder / "__0_0.distcp").write_bytes(b"weights")
    (folder / "architecture.json").write_text("{}")
    (folder / "content.sha256").write_text("abc\n")
    listed = ("__0_0.distcp", "architecture.json", "tokenizer/tokenizer.model")
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in listed}
    (folder / "checksums.json").write_text(json.dumps(digests))
    return folder


def context(folder: Path) -> StageContext:
    (folder / "stage").mkdir()
    (folder / "stage" / "epoch").write_text("1")
    return StageContext(name="base", config=None, run_dir=folder, dir=folder / "stage", inputs={}, rank=0, world_size=1, local_rank=0, epoch=1)


def test_every_file_arrives(source: Path, tmp_path: Path) -> None:
    here = context(tmp_path)
    assert Import(ImportConfig(str(source))).run(here)["bytes"] == len(b"weights") + 2 + len(b"pieces")
    target = here.output("checkpoint")
    assert {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()} == {
        path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["__0_0.distcp", "tokenizer/tokenizer.model"])
def test_a_damaged_file_is_named(name: str, source: Path, tmp_path: Path) -> None:
    (source / name).write_bytes(b"weightz")
    with pytest.raises(DataError, match=rf"{re.escape(name)} is damaged"):
        Import(ImportConfig(str(source))).run(context(tmp_path))
    assert not (tmp_path / "stage" / "artifacts" / "checkpoint").exists()


def test_what_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no checkpoint artifact: it has no architecture\.json"):
        Import(ImportConfig(str(tmp_path))).run(context(tmp_path))


def test_a_path_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages\.base\.path must name the checkpoint"):
        Import(ImportConfig()).run(context(tmp_path))
