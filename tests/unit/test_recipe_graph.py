"""The stage graph: what is refused before anything runs, and in which words."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from r1mega import hookimpl
from r1mega.errors import ConfigError, PluginError
from r1mega.hookspecs import Register
from r1mega.plugins import Host
from r1mega.recipe.graph import Graph, build
from r1mega.recipe.nodes import Node, Recipe


class Make:
    """Makes a checkpoint and its tokenizer."""

    version = "3"
    inputs: ClassVar[Mapping[str, str]] = {"start": "Checkpoint?"}
    outputs: ClassVar[Mapping[str, str]] = {"checkpoint": "Checkpoint", "tokenizer": "Tokenizer"}


class Sample:
    """Samples from a checkpoint."""

    inputs: ClassVar[Mapping[str, str]] = {"policy": "Checkpoint"}
    outputs: ClassVar[Mapping[str, str]] = {"samples": "SampleSet"}


class Silent:
    """Declares nothing."""


@hookimpl
def register_stages(register: Register) -> None:
    register("make", Make)
    register("sample", Sample)
    register("silent", Silent)


@pytest.fixture(scope="module")
def host() -> Host:
    host = Host()
    host.add(__import__("sys").modules[__name__], "toys")
    host.finish()
    return host


def recipe(**stages: tuple[str, dict[str, str]]) -> Recipe:
    nodes = {name: Node(name, stage, inputs, None, {"seed": 0}, {}) for name, (stage, inputs) in stages.items()}
    return Recipe("toy", 0, Path("run"), nodes, ())


def test_keeps_the_recipes_order_where_edges_allow(host: Host) -> None:
    graph = build(recipe(late=("sample", {"policy": "base.checkpoint"}), other=("make", {}), base=("make", {})), host)
    assert list(graph.nodes) == ["base", "late", "other"]


def test_every_node_comes_after_its_inputs_in_random_graphs(host: Host) -> None:
    for seed in range(50):
        draw = random.Random(seed)
        names = [f"n{index}" for index in range(12)]
        stages = [(name, ("make", {"start": f"{draw.choice(names[:index])}.checkpoint"} if index else {})) for index, name in enumerate(names)]
        draw.shuffle(stages)
        order = list(build(recipe(**dict(stages)), host).nodes)
        assert sorted(order) == sorted(names)
        for name, (_, inputs) in stages:
            for reference in inputs.values():
                assert order.index(reference.partition(".")[0]) < order.index(name), f"seed {seed}: {name} before its input"


@pytest.mark.parametrize(("stages", "said"), [
    ({"a": ("make", {"start": "b.checkpoint"}), "b": ("make", {"start": "a.checkpoint"})}, ["form a cycle", "a -> b -> a"]),
    ({"a": ("make", {"start": "a.checkpoint"})}, ["form a cycle: a -> a"]),
    ({"a": ("sample", {})}, ["stages.a.inputs.policy is missing", "needs a Checkpoint", "no stage makes a Checkpoint"]),
    ({"m": ("make", {}), "a": ("sample", {})}, ["In this recipe: m.checkpoint"]),
    ({"base": ("make", {}), "a": ("sample", {"policy": "bas.checkpoint"})}, ["no stage of this recipe is called 'bas'", "mean 'base'?"]),
    ({"base": ("make", {}), "a": ("sample", {"policy": "base.chekpoint"})}, ["has no output 'chekpoint'", "Did you mean 'checkpoint'?"]),
    ({"base": ("make", {}), "a": ("sample", {"policy": "base"})}, ["'base' names no output", "base.checkpoint, base.tokenizer"]),
    ({"base": ("make", {}), "a": ("sample", {"polcy": "base.checkpoint"})}, ["stages.a.inputs.polcy", "Did you mean 'policy'?"]),
    ({"first": ("make", {}), "base": ("make", {"start": "first.checkpoint"}), "a": ("sample", {"policy": "base.tokenizer"})},
     ["base.tokenizer is a Tokenizer", "needs a Checkpoint", "path: first -> base -> a"]),
    ({"a/b": ("make", {})}, ["stages.a/b", "letters, digits"]),
    ({}, ["recipe 'toy' has no stages"]),
])
def test_refused_with_the_way_out(host: Host, stages: dict[str, tuple[str, dict[str, str]]], said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(recipe(**stages), host)
    for part in said:
        assert part in str(caught.value)


def test_stage_that_declares_nothing_is_its_owners_mistake(host: Host) -> None:
    with pytest.raises(PluginError, match="stage 'silent' of 'toys' declares no `inputs`"):
        build(recipe(a=("silent", {})), host)


def test_survives_the_run_folder(host: Host) -> None:
    graph = build(recipe(base=("make", {}), a=("sample", {"policy": "base.checkpoint"})), host)
    again = Graph.from_json(json.loads(json.dumps(graph.to_json())), {"base": {"seed": 0}, "a": {"seed": 0}})
    assert again == graph
    assert again.nodes["base"].version == "3"
    assert again.nodes["base"].code, "the plugin's source is remembered"


def test_descendants(host: Host) -> None:
    stages = {"a": ("make", {}), "b": ("make", {"start": "a.checkpoint"}), "c": ("make", {}), "d": ("sample", {"policy": "b.checkpoint"})}
    graph = build(recipe(**stages), host)
    assert graph.descendants("a") == {"a", "b", "d"}
    assert graph.descendants("c") == {"c"}
