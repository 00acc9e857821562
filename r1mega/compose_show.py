"""`--cfg` and `--dry-run`: the resolved tree of every stage as YAML, each leaf with where its value came from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from r1mega.recipe.nodes import Node, Recipe


def show(recipe: Recipe, chosen: Collection[str] | None = None) -> str:
    """YAML that parses back to `{recipe, seed, output_dir, stages: {name: {stage, inputs, config}}}`, of the `chosen` stages or of all."""
    lines = [f"recipe: {_scalar(recipe.name)}", f"seed: {recipe.seed}", f"output_dir: {_scalar(str(recipe.output_dir))}", "stages:"]
    for node in (node for name, node in recipe.nodes.items() if chosen is None or name in chosen):
        derived = "; ".join(f"{name}: {node.provenance[key]}" for name in node.inputs if (key := f"inputs.{name}") in node.provenance)
        lines += [f"  {node.name}:", f"    stage: {_scalar(node.stage)}", f"    inputs: {_scalar(dict(node.inputs))}" + (f"  # {derived}" if derived else "")]
        lines += ["    config:", *_lines(node.tree, node, "", 6)] if node.tree else ["    config: {}"]
    return "\n".join(lines) + "\n"


def _lines(tree: Mapping[str, Any], node: Node, prefix: str, indent: int) -> Iterator[str]:
    for name, value in tree.items():
        key, head = f"{prefix}{name}", f"{' ' * indent}{_scalar(name)}:"
        if isinstance(value, Mapping) and value:
            yield head
            yield from _lines(value, node, f"{key}.", indent + 2)
        else:
            yield f"{head} {_scalar(value)}  # {node.provenance[key]}"


def _scalar(value: Any) -> str:
    """One value on one line."""
    style = '"' if isinstance(value, str) and "\n" in value else None
    text: str = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=10**9, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").removesuffix("\n")
