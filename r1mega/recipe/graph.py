"""From the nodes of a recipe to an order they can run in, or a message that says what is wrong, before anything runs."""

from __future__ import annotations

import graphlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1mega.errors import ConfigError, PluginError, nearest
from r1mega.plugins import Host
from r1mega.recipe import files
from r1mega.recipe.nodes import Node, Recipe
from r1mega.registry import Plugin
from r1mega.schema import PLUGIN_FIELDS

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class GraphNode:
    """A node with what its stage plugin declares: all that is needed to judge its state, and all that `graph.json` keeps of it."""

    name: str
    stage: str
    version: str  # the plugin's, part of the fingerprint
    owner: str  # who registered the plugin
    code: str  # digest of the plugin's source file; a change with an unchanged version is worth a warning
    inputs: Mapping[str, str]  # input name -> "<node>.<output>"
    input_types: Mapping[str, str]
    output_types: Mapping[str, str]
    tree: Mapping[str, Any]
    plugins: Mapping[str, str] = field(default_factory=dict)  # "<kind>/<name>" -> version, of every plugin the settings choose

    @property
    def upstream(self) -> tuple[str, ...]:
        """The nodes whose outputs this one reads, each once."""
        return tuple(dict.fromkeys(reference.partition(".")[0] for reference in self.inputs.values()))


@dataclass(frozen=True)
class Graph:
    """A checked recipe graph; `nodes` is in an order in which every node comes after its inputs."""

    nodes: Mapping[str, GraphNode]

    def descendants(self, name: str) -> set[str]:
        """`name` and every node that depends on it."""
        found = {name}
        for node in self.nodes.values():
            if found.intersection(node.upstream):
                found.add(node.name)
        return found

    def to_json(self) -> dict[str, Any]:
        """For `graph.json`; the settings are in `config.yaml`."""
        return {"nodes": {name: {key: value for key, value in vars(node).items() if key not in ("name", "tree")}
                          for name, node in self.nodes.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], trees: Mapping[str, Any]) -> Graph:
        return cls({name: GraphNode(name=name, tree=trees[name], **fields) for name, fields in data["nodes"].items()})


def build(recipe: Recipe, host: Host) -> Graph:
    """Check every edge and order the nodes. Raises `ConfigError` with the path through the graph for an unknown node or output, a missing or
    unknown input, artifact types that differ, or a cycle."""
    if not recipe.nodes:
        raise ConfigError(f"recipe '{recipe.name}' has no stages; name at least one under `stages:`")
    nodes = {name: _describe(node, host) for name, node in recipe.nodes.items()}
    for node in nodes.values():
        _check_inputs(node, nodes)
    _refuse_cycles(nodes)
    ordered = {name: nodes[name] for name in _order(nodes)}
    for node in ordered.values():
        _check_types(node, ordered)
    return Graph(ordered)


def _describe(node: Node, host: Host) -> GraphNode:
    if not _NAME.fullmatch(node.name):
        raise ConfigError(f"stages.{node.name}: a stage's name is letters, digits, '_' and '-', and starts with a letter")
    plugin = host.registry.get("stages", node.stage)
    declared = {}
    for side in ("inputs", "outputs"):
        types = getattr(plugin.factory, side, None)
        if not isinstance(types, Mapping):
            raise PluginError(f"stage '{plugin.name}' of '{plugin.owner}' declares no `{side}`: "
                              "a mapping of artifact name to type on the registered class")
        declared[side] = dict(types)
    return GraphNode(node.name, node.stage, plugin.version, plugin.owner, _code(plugin), dict(node.inputs), declared["inputs"],
                     declared["outputs"], node.tree, _plugins(node, host))


def _plugins(node: Node, host: Host) -> dict[str, str]:
    """The versions of the plugins that the node's settings name."""
    chosen = [(kind, node.tree[group]["name"]) for group, kind in PLUGIN_FIELDS.items() if node.tree.get(group)]
    chosen += [("rewards", term["name"]) for term in node.tree.get("reward", {}).get("terms", {}).values()]
    chosen += [("tasks", one["task"]["name"]) for one in node.tree.get("evaluation_tasks", {}).values()]
    return {f"{kind}/{name}": host.registry.get(kind, name).version for kind, name in sorted(chosen)}


def _code(plugin: Plugin) -> str:
    try:
        source = inspect.getsourcefile(plugin.factory)
    except TypeError:  # a factory that is neither a class nor a function
        source = None
    return files.file_digest(Path(source)) if source and Path(source).is_file() else ""


def _check_inputs(node: GraphNode, nodes: Mapping[str, GraphNode]) -> None:
    here = f"stages.{node.name}.inputs"
    for name, reference in node.inputs.items():
        if name not in node.input_types:
            raise ConfigError(f"{here}.{name}: stage '{node.stage}' has no such input.{nearest(name, node.input_types)} "
                              f"It has: {', '.join(node.input_types) or 'none'}")
        source, dot, output = str(reference).partition(".")
        if not dot:
            known = ", ".join(f"{source}.{one}" for one in nodes[source].output_types) if source in nodes else "<stage>.<output>"
            raise ConfigError(f"{here}.{name}: '{reference}' names no output; write {known}")
        if source not in nodes:
            raise ConfigError(f"{here}.{name}: no stage of this recipe is called '{source}' ({reference} -> {node.name})."
                              f"{nearest(source, nodes)} Stages: {', '.join(nodes)}")
        if output not in nodes[source].output_types:
            raise ConfigError(f"{here}.{name}: stage '{source}' ({nodes[source].stage}) has no output '{output}' ({reference} -> {node.name})."
                              f"{nearest(output, nodes[source].output_types)} Outputs: {', '.join(nodes[source].output_types) or 'none'}")
    for name, wanted in node.input_types.items():
        if name not in node.inputs and not wanted.endswith("?"):
            givers = [f"{other.name}.{output}" for other in nodes.values() for output, kind in other.output_types.items()
                      if kind == wanted and other.name != node.name]
            raise ConfigError(f"{here}.{name} is missing: stage '{node.stage}' needs a {wanted}. "
                              f"In this recipe: {', '.join(givers) or f'no stage makes a {wanted}'}")


def _refuse_cycles(nodes: Mapping[str, GraphNode]) -> None:
    try:
        graphlib.TopologicalSorter({name: node.upstream for name, node in nodes.items()}).prepare()
    except graphlib.CycleError as error:
        path = " -> ".join(error.args[1])
        raise ConfigError(f"the stages form a cycle: {path}; a stage cannot wait for its own result") from error


def _order(nodes: Mapping[str, GraphNode]) -> list[str]:
    """The recipe's own order wherever the edges allow it."""
    ordered: dict[str, None] = {}

    def visit(name: str) -> None:
        for source in nodes[name].upstream:
            if source not in ordered:
                visit(source)
        ordered[name] = None

    for name in nodes:
        if name not in ordered:
            visit(name)
    return list(ordered)


def _check_types(node: GraphNode, nodes: Mapping[str, GraphNode]) -> None:
    for name, reference in node.inputs.items():
        source, _, output = reference.partition(".")
        wanted, given = node.input_types[name].removesuffix("?"), nodes[source].output_types[output]
        if wanted != given:
            raise ConfigError(f"stages.{node.name}.inputs.{name}: {reference} is a {given}, stage '{node.stage}' needs a {wanted} "
                              f"(path: {path_to(nodes, source)} -> {node.name})")


def path_to(nodes: Mapping[str, GraphNode], name: str) -> str:
    """One way through the graph from a first stage to `name`: `base -> zero -> cold_start`."""
    path = [name]
    while nodes[path[0]].upstream:
        path.insert(0, nodes[path[0]].upstream[0])
    return " -> ".join(path)
