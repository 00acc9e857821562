"""From a command line to a checked recipe: every stage is its own Hydra composition of `conf/stage/<kind>.yaml`.

A stage is given, weakest first: the recipe's root overrides and the user's (each only where that stage has the group or key), the recipe's
for stages of its kind, the recipe's for that stage, the user's `stages.<name>.` overrides. As everywhere in Hydra, group choices (`rollout=vllm`)
are made before values (`rollout.temperature=0.7`) are set, whatever their order. Free of torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from r1mega import strict
from r1mega.compose_hydra import Hydra, Layer, parse, session
from r1mega.compose_overrides import Override, Reach, Source, read, select
from r1mega.config import ClusterConfig, ParallelConfig, PluginChoice, PrecisionConfig
from r1mega.errors import ConfigError, R1MegaError, UserError, nearest
from r1mega.plugins import Host
from r1mega.recipe.evaluations import tell
from r1mega.recipe.nodes import Node, Recipe, leaves
from r1mega.registry import Registry

ROOT_KEYS = ("recipe", "seed", "output_dir", "stages")
STAGE_OVERRIDE = re.compile(r"([+~]*)stages\.([^.=]+)\.(.+)", re.DOTALL)
NODE_NAME = re.compile(r"[A-Za-z0-9_-]+")
DEFAULT = "default"


@dataclass(frozen=True)
class NodeFile:
    """One entry of a recipe file's `stages`."""

    stage: str
    inputs: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RecipeFile:
    """A file conf/recipe/<name>.yaml."""

    stages: dict[str, NodeFile]
    description: str = ""
    seed: int | None = None
    overrides: list[str] = field(default_factory=list)  # for every stage that has the group or key
    kinds: dict[str, list[str]] = field(default_factory=dict)  # stage plugin -> for every stage of that kind


@dataclass(frozen=True)
class NoConfig:
    """What a stage plugin without a config dataclass is checked against: nothing may be set."""


@dataclass
class CommandLine:
    """The user's overrides, sorted by what they address."""

    recipe: str
    seed: int | None = None
    output_dir: str | None = None
    root: list[str] = field(default_factory=list)
    stages: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # node -> (text without the prefix, as written)


def compose_recipe(overrides: Sequence[str], host: Host) -> Recipe:
    """The recipe that `overrides` (Hydra's grammar) name, every stage composed and checked.

    Raises `ConfigError` or `PluginError`, one line each, for whatever does not fit.
    """
    with session(host) as hydra:
        line = _command_line(overrides, hydra)
        return _Composer(hydra, host.registry, line).recipe(tuple(overrides))


def config_from_tree(host: Host, stage: str, tree: Mapping[str, Any]) -> Any:
    """A stage's config dataclass instance from its `config.yaml`; None for a stage that takes no config. Raises `ConfigError`."""
    return _build(host.registry, stage, tree, "")


def _build(registry: Registry, stage: str, tree: Mapping[str, Any], where: str, origins: Mapping[str, str] | None = None) -> Any:
    config = registry.get("stages", stage).config
    source = (lambda key: _origin(origins, key.removeprefix(f"{where}."))) if origins else None
    try:
        built: Any = strict.build(config or NoConfig, tree, where, registry=registry, origin=source)
    except ConfigError as error:
        if not where or where in str(error):
            raise
        raise ConfigError(f"{where}: {error}") from error  # a dataclass's own check does not know whose it is
    return built if config else None


def _command_line(overrides: Sequence[str], hydra: Hydra) -> CommandLine:
    line = CommandLine("")
    for text in overrides:
        within = STAGE_OVERRIDE.fullmatch(text)
        if within:
            mark, node, rest = within.groups()
            line.stages.setdefault(node, []).append((mark + rest, text))
            continue
        parsed = parse(text)
        key, value = parsed.key_or_group, None if parsed.is_delete() else parsed.value()
        if key not in ROOT_KEYS:
            line.root.append(text)
        elif key == "recipe" and isinstance(value, str):
            line.recipe = value
        elif key == "seed" and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            line.seed = value
        elif key == "output_dir" and isinstance(value, str) and value:
            line.output_dir = value
        else:
            expected = {"recipe": "recipe=<name>", "seed": "seed=<integer of at least 0>", "output_dir": "output_dir=<folder>",
                        "stages": "stages.<name>.<key>=<value>"}[key]
            raise ConfigError(f"override '{text}': write {expected}")
    if not line.recipe:
        known = ", ".join(hydra.options("recipe")) if hydra.is_group("recipe") else ""
        raise ConfigError(f"which recipe? Give recipe=<name>. Recipes: {known or 'none'}")
    hydra.check_choice("recipe", line.recipe, f"recipe={line.recipe}")
    return line


class _Composer:
    """Composes the stages of one recipe."""

    def __init__(self, hydra: Hydra, registry: Registry, line: CommandLine) -> None:
        self.hydra = hydra
        self.registry = registry
        self.line = line
        self.reach = Reach()
        self.name = f"recipe/{line.recipe}"
        layers = hydra.layers(self.name)
        self.file = layers[-1].file if layers else f"conf/{self.name}.yaml"
        self.content = self._read()
        self.seed = next((seed for seed in (line.seed, self.content.seed) if seed is not None), None)
        self.root = self._root_overrides()

    def _read(self) -> RecipeFile:
        tree: Any = self.hydra.compose(self.name)
        for part in self.name.split("/")[:-1]:  # a config of a group is composed below the group's name
            tree = tree.get(part, {})
        try:
            content = strict.build(RecipeFile, tree)
        except ConfigError as error:
            raise ConfigError(f"{self.file}: {error}") from error
        for node in content.stages:
            if not NODE_NAME.fullmatch(node):
                raise ConfigError(f"{self.file}: stages.{node}: a stage's name is made of letters, digits, '_' and '-'")
        kinds = {file.stage for file in content.stages.values()}
        if unused := [kind for kind in content.kinds if kind not in kinds]:
            raise ConfigError(f"{self.file}: kinds.{unused[0]}: the recipe has no stage of this kind.{nearest(unused[0], kinds)} Kinds: "
                              f"{', '.join(sorted(kinds))}")
        if not content.stages:
            raise ConfigError(f"{self.file}: stages: expected at least one stage")
        for node, written in self.line.stages.items():
            if node not in content.stages:
                raise ConfigError(f"override '{written[0][1]}': recipe '{self.line.recipe}' has no stage '{node}'."
                                  f"{nearest(node, content.stages)} Stages: {', '.join(content.stages)}")
        return replace(content, stages={node: self._other_kind(node, file) for node, file in content.stages.items()})

    def _other_kind(self, name: str, file: NodeFile) -> NodeFile:
        """The node with the stage plugin that the user chose with `stages.<name>.stage=KIND`: the recipe's settings were for its own, and go with it."""
        chosen = [(rest, written) for rest, written in self.line.stages.get(name, []) if rest.partition("=")[0] == "stage"]
        if not chosen:
            return file
        self.line.stages[name] = [entry for entry in self.line.stages[name] if entry not in chosen]
        rest, written = chosen[-1]
        kind = parse(rest).value()
        try:
            plugin = self.registry.get("stages", str(kind))
        except UserError as error:
            raise ConfigError(f"override '{written}': {error}") from error
        if str(kind) == file.stage:
            return file
        takes = getattr(plugin.factory, "inputs", {})
        return NodeFile(str(kind), {name: of for name, of in file.inputs.items() if name in takes})

    def _root_overrides(self) -> list[Override]:
        found = [read(text, Source.RECIPE_ROOT, f"{self.file}: override '{text}'", self.hydra) for text in self.content.overrides]
        return found + [read(text, Source.USER_ROOT, f"override '{text}'", self.hydra) for text in self.line.root]

    def recipe(self, written: tuple[str, ...]) -> Recipe:
        nodes = tell({name: self.node(name, file) for name, file in self.content.stages.items()}, self.registry)
        self.reach.check(self.root, ROOT_KEYS)
        output = Path(self.line.output_dir or f"runs/{self.line.recipe}").expanduser()
        return Recipe(name=self.line.recipe, seed=self.seed or 0, output_dir=Path.cwd() / output, nodes=nodes, overrides=written,
                      description=self.content.description)

    def node(self, name: str, file: NodeFile) -> Node:
        where = f"stages.{name}"
        try:
            plugin = self.registry.get("stages", file.stage)
        except UserError as error:
            raise ConfigError(f"{self.file}: {where}.stage: {error}") from error
        stage, config = f"stage/{file.stage}", plugin.config or NoConfig
        self.hydra.check_choice("stage", file.stage, f"{self.file}: {where}")
        inputs, overrides = self._overrides(name, file, config)
        chosen = select(stage, config, overrides, self.hydra, self.registry, self.reach)
        groups = [override.text for override in chosen if override.is_group]
        tree = absolute_paths(self.hydra.compose(stage, groups + [override.forced for override in chosen if not override.is_group]))
        layers = self.hydra.layers(stage, groups)
        origins = _origins(layers, chosen)
        built = _build(self.registry, file.stage, tree, where, origins)
        check_layout(built, where, self.registry)
        full = strict.to_tree(built) if built is not None else {}
        task = next((Path(layer.file).stem for layer in reversed(layers) if layer.group == "task"), "")
        return Node(name=name, stage=file.stage, inputs=inputs, config=built, tree=full, task=task,
                    provenance={key: _origin(origins, key) or DEFAULT for key, _ in leaves(full)})

    def _overrides(self, name: str, file: NodeFile, config: type) -> tuple[dict[str, str], list[Override]]:
        """The node's inputs, and all overrides addressed to it, weakest first."""
        overrides = list(self.root)
        if self.seed is not None and "seed" in config.__dataclass_fields__:  # type: ignore[attr-defined]
            said = f"override 'seed={self.seed}'" if self.line.seed is not None else f"{self.file}: seed"
            overrides.append(read(f"seed={self.seed}", Source.USER_ROOT, said, self.hydra))
        for text in self.content.kinds.get(file.stage, []):
            overrides.append(read(text, Source.RECIPE_STAGE, f"{self.file}: kinds.{file.stage}: override '{text}'", self.hydra))
        for text in file.overrides:
            overrides.append(read(text, Source.RECIPE_STAGE, f"{self.file}: stages.{name}: override '{text}'", self.hydra))
        inputs = dict(file.inputs)
        for text, written in self.line.stages.get(name, []):
            override = read(text, Source.USER_STAGE, f"override '{written}'", self.hydra)
            if override.top == "inputs" and "inputs" not in config.__dataclass_fields__:  # type: ignore[attr-defined]
                _set_input(inputs, override)
            else:
                overrides.append(override)
        return inputs, overrides


def _set_input(inputs: dict[str, str], override: Override) -> None:
    name = override.key.removeprefix("inputs").lstrip(".")
    if override.deleted or override.value is None:
        inputs.pop(name, None)
    elif name and "." not in name and isinstance(override.value, str) and override.value.count(".") == 1:
        inputs[name] = override.value
    else:
        raise ConfigError(f"{override.said}: write stages.<name>.inputs.<input>=<stage>.<output>, such as base.checkpoint")


def _origins(layers: Sequence[Layer], chosen: Sequence[Override]) -> dict[str, str]:
    """Dotted key -> the file or override that set it last."""
    origins: dict[str, str] = {}
    choice = {override.group: override.said for override in chosen if override.is_group}
    for layer in layers:
        because = f", chosen by {choice[layer.group]}" if layer.group in choice else ""
        origins.update((key, layer.file + because) for key, _ in leaves(layer.tree))
    for override in chosen:
        if not override.is_group:
            below = leaves(override.value, override.key) if isinstance(override.value, dict) else [(override.key, None)]
            origins.update((key, override.said) for key, _ in below)
    return origins


def _origin(origins: Mapping[str, str] | None, key: str) -> str | None:
    """Where `key` came from: its own entry, else that of the mapping it stands in."""
    parts = re.sub(r"\[\d+\]", "", key).split(".")
    for end in range(len(parts), 0, -1):
        found = (origins or {}).get(".".join(parts[:end]))
        if found:
            return found
    return None


def absolute_paths(tree: Any, key: str = "") -> Any:
    """Relative values of keys that end in `path`, made absolute against the current folder: a stage's process may start in another one."""
    if isinstance(tree, Mapping):
        return {name: absolute_paths(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, str) and tree and tree != strict.MISSING and key.endswith("path") and "://" not in tree:
        return str((Path.cwd() / Path(tree).expanduser()).resolve())
    return tree


def check_layout(config: Any, where: str, registry: Registry) -> int | None:
    """The world size of a stage that has a model; None for one that has none, or none yet. Raises `ConfigError` for an impossible layout."""
    parts = [getattr(config, part, None) for part in ("model", "parallel", "precision", "cluster")]
    model, parallel, precision, cluster = parts
    if not isinstance(model, PluginChoice) or not isinstance(parallel, ParallelConfig) or model.is_unset:
        return None
    from r1mega.policy import layout

    factory = registry.get("models", model.name).factory
    try:
        architecture = factory(model.config) if model.config is not None else factory()
        return layout.check_layout(architecture, parallel, precision or PrecisionConfig(), cluster or ClusterConfig())
    except (ValueError, R1MegaError) as error:
        raise ConfigError(f"{where}: {error}") from error
