"""Strict trees: every kind of mistake is one line with the full key, what was expected and the nearest spelling."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from toy import FileTaskConfig, TrainConfig, toy_host

from r1mega import strict
from r1mega.config import ParallelConfig, PluginChoice, PrecisionConfig, RewardConfig, RewardTerm
from r1mega.errors import ConfigError
from r1mega.registry import Registry


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    size: int = 1
    rates: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size must be at least 0, got {self.size}")


@dataclass(frozen=True)
class Outer:
    count: int
    name: str = "x"
    rate: float = 1.0
    on: bool = False
    maybe: int | None = None
    mode: Literal["fast", "slow"] | None = None
    colour: Colour = Colour.RED
    tags: list[str] = field(default_factory=list)
    pair: tuple[int, str] = (1, "a")
    folder: Path = Path(".")
    table: dict[str, Inner] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    extra: Inner | None = None
    size: int | str = 0
    anything: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return toy_host("pkg://nowhere").registry


def test_a_whole_tree_becomes_the_dataclass_and_comes_back() -> None:
    tree = {"count": 3, "rate": 2, "on": True, "maybe": 4, "mode": "slow", "colour": "blue", "tags": ["a"], "pair": [5, "b"], "folder": "/data",
            "table": {"one": {"size": 2}}, "inner": {"rates": [1, 0.25]}, "extra": {"size": 9}, "size": "big", "anything": {"k": [1]}}
    built = strict.build(Outer, tree)
    assert built == Outer(3, "x", 2.0, True, 4, "slow", Colour.BLUE, ["a"], (5, "b"), Path("/data"), {"one": Inner(2)}, Inner(1, (1.0, 0.25)),
                          Inner(9), "big", {"k": [1]})
    assert isinstance(built.rate, float)
    assert isinstance(built.inner.rates[0], float)
    assert strict.build(Outer, yaml.safe_load(yaml.safe_dump(strict.to_tree(built)))) == built


@pytest.mark.parametrize(("tree", "words"), [
    ({"count": 1, "nam": "y"}, ["s.nam: no such key", "Did you mean 'name'?"]),
    ({"count": 1, "inner": {"sise": 1}}, ["s.inner.sise: no such key", "'size'"]),
    ({}, ["s.count: missing", "s.count=<int>"]),
    ({"count": "???"}, ["s.count: has no value"]),
    ({"count": "3"}, ["s.count: expected int, got '3' (str)"]),
    ({"count": True}, ["s.count: expected int, got True (bool)"]),
    ({"count": 1.0}, ["s.count: expected int, got 1.0 (float)"]),
    ({"count": None}, ["s.count: expected int, got null"]),
    ({"count": 1, "on": 1}, ["s.on: expected bool, got 1 (int)"]),
    ({"count": 1, "name": 5}, ["s.name: expected str, got 5 (int)"]),
    ({"count": 1, "rate": "fast"}, ["s.rate: expected float"]),
    ({"count": 1, "rate": True}, ["s.rate: expected float, got True (bool)"]),
    ({"count": 1, "rate": "0.5"}, ["s.rate: expected float, got '0.5' (str)"]),
    ({"count": 1, "maybe": "x"}, ["s.maybe: expected int or null"]),
    ({"count": 1, "mode": "fats"}, ["s.mode: expected one of 'fast', 'slow' or null", "'fast'?"]),
    ({"count": 1, "colour": "rde"}, ["s.colour: expected one of 'red', 'blue'"]),
    ({"count": 1, "tags": "a"}, ["s.tags: expected list of str, got 'a' (str)"]),
    ({"count": 1, "tags": ["a", 2]}, ["s.tags[1]: expected str, got 2"]),
    ({"count": 1, "pair": [1]}, ["s.pair: expected list of 2 values (int, str)"]),
    ({"count": 1, "pair": ["a", "b"]}, ["s.pair[0]: expected int"]),
    ({"count": 1, "inner": 3}, ["s.inner: expected a mapping", "got 3"]),
    ({"count": 1, "table": {"one": {"size": "x"}}}, ["s.table.one.size: expected int"]),
    ({"count": 1, "table": {"one": {"size": -1}}}, ["s.table.one: size must be at least 0, got -1"]),
    ({"count": 1, "extra": {"siz": 1}}, ["s.extra.siz: no such key", "'size'"]),
    ({"count": 1, "size": [1]}, ["s.size: expected int or str"]),
])
def test_mistakes(tree: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        strict.build(Outer, tree, "s")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("text", ["1e-4", "3E6", "-2.5e+3", "1.e5"])
def test_scientific_notation_that_yaml_reads_as_a_string_is_a_float(text: str) -> None:
    assert strict.build(Outer, {"count": 1, **yaml.safe_load(f"rate: {text}")}).rate == float(text)


def test_literal_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"params_dtype: expected one of 'fp32', 'bf16', got 'bf61' \(str\)\. Did you mean 'bf16'\?"):
        strict.build(PrecisionConfig, {"params_dtype": "bf61"})


def test_the_origin_of_the_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"tensor_model_parallel_size: expected int.*set by conf/parallel/tp2.yaml"):
        strict.build(ParallelConfig, {"tensor_model_parallel_size": "two"}, origin=lambda _: "conf/parallel/tp2.yaml")


def test_plugin_fields_are_checked_against_the_plugins_dataclass(registry: Registry) -> None:
    built = strict.build(TrainConfig, {"task": {"name": "file", "path": "x"}, "rollout": {"name": "fast", "temperature": 0}}, registry=registry)
    assert built.task == PluginChoice("file", FileTaskConfig("x"))
    assert built.rollout.config.temperature == 0.0
    assert strict.build(TrainConfig, strict.to_tree(built), registry=registry) == built
    assert strict.build(TrainConfig, {"task": {"name": "fixed"}}, registry=registry).task == PluginChoice("fixed", None)
    assert strict.build(TrainConfig, {}, registry=registry).task == {}


@pytest.mark.parametrize(("tree", "words"), [
    ({"task": {"name": "fil"}}, ["s.task.name: no tasks plugin is called 'fil'", "Did you mean 'file'?"]),
    ({"task": {"path": "x"}}, ["s.task.name: missing", "file, fixed"]),
    ({"task": {"name": "file"}}, ["s.task.path: missing"]),
    ({"task": {"name": "file", "path": "x", "spilt": "by_id"}}, ["s.task.spilt: no such key", "'split'"]),
    ({"task": {"name": "fixed", "path": "x"}}, ["s.task.path: no such key: task 'fixed' takes no settings"]),
    ({"rollout": {"name": "fast", "max_tokens": 1.5}}, ["s.rollout.max_tokens: expected int"]),
    ({"reward": {"terms": {"a": {"name": "lenght"}}}}, ["s.reward.terms.a.name: no rewards plugin", "'length'"]),
    ({"reward": {"terms": {"a": {"name": "length", "settings": {"targt": 1}}}}}, ["s.reward.terms.a.settings.targt: no such key", "'target'"]),
    ({"reward": {"terms": {"a": {"name": "plain", "settings": {"x": 1}}}}}, ["s.reward.terms.a.settings.x", "takes no settings"]),
])
def test_plugin_mistakes(registry: Registry, tree: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        strict.build(TrainConfig, tree, "s", registry=registry)
    for word in words:
        assert word in str(caught.value)


def test_reward_settings_are_checked_complete_and_plain(registry: Registry) -> None:
    built = strict.build(RewardConfig, {"terms": {"a": {"name": "length"}, "b": {"name": "plain"}}}, registry=registry)
    assert built.terms == {"a": RewardTerm("length", 1.0, {"target": 10}), "b": RewardTerm("plain", 1.0, {})}
