"""Paths that a recipe leaves to its user: which of them are still empty, told before anything runs."""

from __future__ import annotations

from collections.abc import Collection

from r1mega.plugins import Host
from r1mega.recipe.fingerprint import flatten
from r1mega.recipe.graph import Graph, GraphNode
from r1mega.schema import PLUGIN_FIELDS


def unset_paths(graph: Graph, host: Host, chosen: Collection[str]) -> dict[str, list[str]]:
    """Node -> its keys that must be given and are empty, in the graph's order; of the `chosen` nodes alone.

    Must be given: what the config dataclass of the stage, or of a plugin in it, names in `required_paths` (a `ClassVar`), but for the tokenizer's
    where a checkpoint, or the stage itself (`brings_tokenizer`), brings it; and one of the settings that a stage's `output_paths` names for an output
    that another stage reads, written `a or b`.
    """
    read = {reference for node in graph.nodes.values() for reference in node.inputs.values()}
    found = {}
    for name, node in graph.nodes.items():
        if name in chosen and (keys := [*_empty_paths(node, host), *_empty_sources(node, host, read)]):
            found[name] = keys
    return found


def _empty_paths(node: GraphNode, host: Host) -> list[str]:
    brings_tokenizer = "Checkpoint" in {node.input_types[name].removesuffix("?") for name in node.inputs} \
        or getattr(host.registry.get("stages", node.stage).factory, "brings_tokenizer", False)
    groups = {"": ("stages", {**node.tree, "name": node.stage})}
    groups |= {f"{group}.": (kind, node.tree[group]) for group, kind in PLUGIN_FIELDS.items() if node.tree.get(group)}
    found = []
    for prefix, (kind, settings) in groups.items():
        config = host.registry.get(kind, settings["name"]).config
        found += [prefix + name for name in getattr(config, "required_paths", ()) if not settings[name]]
    if node.tree.get("template", {}).get("prompt") == "":  # a released one, not yet named
        found.append("template.path")
    return [key for key in found if not (brings_tokenizer and key.startswith("tokenizer."))]


def _empty_sources(node: GraphNode, host: Host, read: Collection[str]) -> list[str]:
    sources = getattr(host.registry.get("stages", node.stage).factory, "output_paths", {})
    return [" or ".join(keys) for output, keys in sources.items() if f"{node.name}.{output}" in read and not any(node.tree.get(key) for key in keys)]


def to_set(unset: dict[str, list[str]], graph: Graph) -> list[str]:
    """The keys as a user sets them: `stages.<name>.<key>`, or the bare key where it is empty in each of the several stages that have it."""
    having: dict[str, list[str]] = {}
    for name, node in graph.nodes.items():
        for key in flatten(node.tree):
            having.setdefault(key, []).append(name)
    names: dict[str, None] = {}
    for name, keys in unset.items():
        for key in keys:
            places = having.get(key, [])
            shared = len(places) > 1 and all(key in unset.get(place, ()) for place in places)
            names[key if shared else f"stages.{name}.{key}"] = None
    return list(names)
