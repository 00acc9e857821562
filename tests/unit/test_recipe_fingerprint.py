"""Fingerprints: what makes a result stale, what does not, and how it is said."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from r1mega.errors import UserError
from r1mega.recipe import files
from r1mega.recipe.fingerprint import basis_of, explain, fingerprint, flatten
from r1mega.recipe.graph import GraphNode
from r1mega.recipe.known import KnownDigests

TREE: dict[str, Any] = {"seed": 0, "lr": 1.0, "parallel": {"tensor_model_parallel_size": 1}, "reward": {"workers": 1, "retries": 1},
                        "task": {"name": "jsonl", "path": ""}, "terms": [{"name": "accuracy", "weight": 1.0}], "stop": ["a", "b"]}


def node(tree: dict[str, Any], version: str = "1", stage: str = "rl") -> GraphNode:
    return GraphNode("zero", stage, version, "toys", "", {}, {}, {}, tree)


def changed(now: dict[str, Any], before: dict[str, Any] = TREE) -> list[str]:
    old, new = basis_of(node(before), {}), basis_of(node(now), {})
    reasons = explain(old, new)
    assert (fingerprint(old) != fingerprint(new)) == bool(reasons), "the explanation and the fingerprint disagree"
    return reasons


@pytest.mark.parametrize(("change", "said"), [
    ({"lr": 2.5}, ["lr: 1 -> 2.5"]),
    ({"reward": {"workers": 1, "retries": 2}}, ["reward.retries: 1 -> 2"]),
    ({"terms": [{"name": "accuracy", "weight": 0.5}]}, ["terms.0.weight: 1 -> 0.5"]),
    ({"stop": ["b", "a"]}, ['stop: ["a", "b"] -> ["b", "a"]']),
    ({"new": True}, ["new: (absent) -> true"]),
    ({"lr": math.inf}, ['lr: 1 -> "inf"']),
    ({"lr": 1}, []),  # 1 and 1.0 are the same setting
    ({"parallel": {"tensor_model_parallel_size": 2}}, []),
    ({"reward": {"workers": 8, "retries": 1}}, []),
])
def test_settings(change: dict[str, Any], said: list[str]) -> None:
    assert changed({**TREE, **change}) == said


def test_comments_and_key_order_change_nothing() -> None:
    text = "# a comment\nlr: 1\nseed: 0 # another\n"
    assert changed(yaml.safe_load(text), {"seed": 0, "lr": 1.0}) == []


def test_key_removed() -> None:
    assert changed({key: value for key, value in TREE.items() if key != "seed"}) == ["seed: 0 -> (absent)"]


@pytest.mark.parametrize("key", ["path", "samples_path"])
def test_external_file_counts_by_content_not_by_place(key: str, tmp_path: Path) -> None:
    for name, text in (("a.jsonl", "1"), ("b.jsonl", "1"), ("c.jsonl", "2")):
        (tmp_path / name).write_text(text)

    def at(name: str) -> dict[str, Any]:
        return {**TREE, "task": {"name": "jsonl", key: str(tmp_path / name)}}

    assert changed(at("b.jsonl"), at("a.jsonl")) == []
    assert changed(at("c.jsonl"), at("a.jsonl")) == [f"task.{key}: contents changed"]


def test_external_folder_counts_with_every_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("1")
    tree = {"path": str(tmp_path)}
    before = basis_of(node(tree), {})
    assert fingerprint(basis_of(node(tree), {})) == fingerprint(before)
    (tmp_path / "deep" / "b.txt").write_text("")
    assert explain(before, basis_of(node(tree), {})) == ["path: contents changed"]


def test_external_files_are_read_once_while_they_stay_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache, read = tmp_path / "big.bin", tmp_path / "known.json", list[Path]()
    digest = files.file_digest

    def counted(path: Path) -> str:
        read.append(path)
        return digest(path)

    monkeypatch.setattr(files, "file_digest", counted)
    file.write_bytes(b"1")
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"1", b"12"))
    young = KnownDigests(cache)
    assert (young(file), young(file), len(read)) == (one, one, 1)
    young.save()
    assert not cache.exists(), "changed a moment ago: it may change again within the clock's grain"
    os.utime(file, (1e9, 1e9))
    settled = KnownDigests(cache)
    settled(file)
    settled.save()
    assert (KnownDigests(cache)(file), len(read)) == (one, 2), "another process reads nothing"
    file.write_bytes(b"12")
    os.utime(file, (1e9, 1e9))
    assert (KnownDigests(cache)(file), len(read)) == (two, 3), "another size"
    cache.write_text("[torn")
    assert (KnownDigests(cache)(file), len(read)) == (two, 4), "a broken cache is none"


def test_missing_external_file_is_named_with_its_key() -> None:
    with pytest.raises(UserError, match=r"stages\.zero: task\.path: no such file or folder: nowhere\.jsonl"):
        basis_of(node({"task": {"path": "nowhere.jsonl"}}), {})


def test_inputs_and_versions() -> None:
    before = basis_of(node(TREE), {"policy": "aa"})
    assert explain(before, basis_of(node(TREE), {"policy": "bb"})) == ["input policy changed"]
    assert explain(before, basis_of(node(TREE, version="2"), {"policy": "aa"})) == ["version of stage rl: 1 -> 2"]
    assert explain(before, basis_of(node(TREE, stage="sft"), {"policy": "aa"})) == ["stage: rl -> sft"]


def test_the_version_of_a_plugin_in_use() -> None:
    old, new = (basis_of(replace(node(TREE), plugins={"rewards/accuracy": version}), {}) for version in "12")
    assert explain(old, new) == ["version of rewards/accuracy: 1 -> 2"]
    assert fingerprint(old) != fingerprint(new)


def test_flatten_keeps_empty_groups() -> None:
    assert flatten({"a": {}, "b": {"c": []}}) == {"a": {}, "b.c": []}
