"""What a recipe measures on is kept out of what it learns from: derived from the graph, for every stage that makes or imports training data.

Who measures: a stage class with the attribute `measured_on`, the inputs whose prompts it measures on where they are connected; else it measures on the
test split of its task. Who is told: a stage whose config has the field `evaluation_tasks` (and inputs named in `EVALUATION_INPUTS`, for prompts that
another stage makes), unless its `decontamination.recipe` is off, or all it makes is itself only measured on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from r1mega import strict
from r1mega.config import PluginChoice
from r1mega.data.decontaminate import EVALUATION_INPUTS, EvaluationTask
from r1mega.errors import ConfigError
from r1mega.recipe.nodes import Node, leaves
from r1mega.registry import Registry


def tell(nodes: Mapping[str, Node], registry: Registry) -> dict[str, Node]:
    """The nodes, those that make training data with what the recipe measures on in their settings and inputs.

    Raises `ConfigError` for one whose rows are measured on as well, or that a set of evaluation prompts is made from.
    """
    recipe = _Recipe(nodes, registry)
    return {name: recipe.told(node) if recipe.learns_from(node) else node for name, node in nodes.items()}


class _Recipe:
    """Who measures on what in one recipe, and who makes what from what."""

    def __init__(self, nodes: Mapping[str, Node], registry: Registry) -> None:
        self.nodes = nodes
        self.factories = {name: registry.get("stages", node.stage).factory for name, node in nodes.items()}
        self.tasks: dict[str, tuple[EvaluationTask, list[str]]] = {}  # name of the set -> the task, who measures on it
        self.prompts: dict[str, list[str]] = {}  # "<node>.<output>" -> who measures on it
        for name, node in nodes.items():
            if (measured := self.measured_on(name)) is None:
                continue
            connected = [node.inputs[one] for one in measured if one in node.inputs]
            for reference in connected:
                self.prompts.setdefault(reference, []).append(name)
            if not connected:
                self._add_task(node)

    def measured_on(self, name: str) -> Sequence[str] | None:
        """The inputs whose prompts a node measures on; None for one that measures nothing."""
        found: Sequence[str] | None = getattr(self.factories[name], "measured_on", None)
        return found

    def _add_task(self, node: Node) -> None:
        """The task's set, called after the choice of the group `task`; stages that agree on the task share it."""
        choice = getattr(node.config, "task", None)
        if not isinstance(choice, PluginChoice):
            return
        task = EvaluationTask(choice, getattr(node.config, "seed", 0))  # type: ignore[arg-type]
        for known, measuring in self.tasks.values():
            if known == task:
                measuring.append(node.name)
                return
        self.tasks[_free(node.task or choice.name, self.tasks)] = task, [node.name]

    # ------------------------------------------------------------------------------------------------------------------------ who is told

    def learns_from(self, node: Node) -> bool:
        """Whether the node makes training data that is to be kept clean."""
        settings = getattr(node.config, "decontamination", None)
        return hasattr(node.config, "evaluation_tasks") and getattr(settings, "recipe", True) and not self._only_measured(node.name, set())

    def _only_measured(self, name: str, seen: set[str]) -> bool:
        """Whether the node's outputs, and all that is made from them, are measured on or kept out of data: no checkpoint learns from them."""
        readers = [(other, key) for other, node in self.nodes.items() for key, reference in node.inputs.items() if _source(reference) == name]
        seen.add(name)
        return bool(readers) and all(key in (*EVALUATION_INPUTS, *(self.measured_on(other) or ()))
                                     or (other not in seen and self._only_measured(other, seen)) for other, key in readers)

    def told(self, node: Node) -> Node:
        own: dict[str, EvaluationTask] = dict(node.config.evaluation_tasks)
        tasks, said = dict(own), {}
        for name, (task, measuring) in self.tasks.items():
            if task not in own.values():
                key = _free(name, tasks)
                tasks[key], said[f"evaluation_tasks.{key}"] = task, _measured_by(measuring)
        inputs, why = self._inputs(node)
        config = dataclasses.replace(node.config, evaluation_tasks=tasks)
        tree = strict.to_tree(config)
        provenance = {key: next((words for prefix, words in said.items() if key.startswith(f"{prefix}.")), node.provenance.get(key, ""))
                      for key, _ in leaves(tree)}
        return dataclasses.replace(node, inputs=inputs, config=config, tree=tree, provenance=provenance | why)

    def _inputs(self, node: Node) -> tuple[dict[str, str], dict[str, str]]:
        """The node's inputs with the evaluation prompts that other stages make, and the provenance of what was added."""
        inputs, why = dict(node.inputs), {}
        places = [name for name in EVALUATION_INPUTS if name in getattr(self.factories[node.name], "inputs", {})]
        for reference, measuring in self.prompts.items():
            source = _source(reference)
            if source not in self.nodes or reference in (inputs.get(place) for place in places):
                continue
            if source == node.name or node.name in self._upstream(source):
                way = f"stages.{measuring[0]} measures on {reference}, which is made by it or from it, while a checkpoint learns from its rows"
                raise ConfigError(f"stages.{node.name}: {way}. Give the prompts to measure on a stage of their own, or set "
                                  f"stages.{node.name}.decontamination.recipe=false to keep no evaluation out of it")
            free = [place for place in places if place not in inputs]
            if not free:
                raise ConfigError(f"stages.{node.name}.inputs: no place for {reference}, which stages.{measuring[0]} measures on; stage '{node.stage}' can be "
                                  f"kept clean of {len(places)} sets of prompts")
            inputs[free[0]], why[f"inputs.{free[0]}"] = reference, _measured_by(measuring)
        return inputs, why

    def _upstream(self, name: str) -> set[str]:
        """All nodes that a node is made from."""
        found: set[str] = set()
        left = [name]
        while left:
            for source in map(_source, self.nodes[left.pop()].inputs.values()):
                if source in self.nodes and source not in found:
                    found.add(source)
                    left.append(source)
        return found


def _source(reference: Any) -> str:
    return str(reference).partition(".")[0]


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """`name`, or `name_2` and so on where it is taken."""
    return next(key for number in range(1, len(taken) + 2) if (key := name if number == 1 else f"{name}_{number}") not in taken)


def _measured_by(stages: Sequence[str]) -> str:
    more = f" and {len(stages) - 3} more" if len(stages) > 3 else ""
    return f"measured on by {', '.join(f'stages.{name}' for name in stages[:3])}{more}"
