"""A composed recipe: what `compose.compose_recipe` returns and `recipe.runner` executes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Node:
    """One stage of a recipe with its configuration composed and checked."""

    name: str  # the node's name: stages.<name>
    stage: str  # the stage plugin
    inputs: Mapping[str, str]  # input name -> "<node>.<output>"
    config: Any  # the stage plugin's dataclass instance
    tree: Mapping[str, Any]  # the same as plain data, as written to config.yaml
    provenance: Mapping[str, str]  # dotted key -> where its value came from (file, recipe, override); "inputs.<name>" of an input that was derived
    task: str = ""  # the choice of the config group `task`, such as aime_2024


@dataclass(frozen=True)
class Recipe:
    """A whole recipe."""

    name: str
    seed: int
    output_dir: Path
    nodes: Mapping[str, Node]  # in the order of the recipe file
    overrides: tuple[str, ...]  # the user's
    description: str = ""  # of the recipe file, for readers


def leaves(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of every leaf; lists and empty mappings are leaves."""
    if not isinstance(tree, Mapping) or (not tree and prefix):
        return [(prefix, tree)]
    return [leaf for key, value in tree.items() for leaf in leaves(value, f"{prefix}.{key}" if prefix else str(key))]
