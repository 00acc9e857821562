"""Overrides with where they came from, and which of them reach which stage."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r1mega.compose_hydra import Hydra, parse
from r1mega.errors import ConfigError, nearest
from r1mega.registry import Registry
from r1mega.schema import all_keys, unknown_part


class Source(enum.IntEnum):
    """Who says it, weakest first. Root overrides reach every stage that has the key; stage overrides must fit their stage."""

    RECIPE_ROOT = 0
    USER_ROOT = 1
    RECIPE_STAGE = 2
    USER_STAGE = 3

    @property
    def root(self) -> bool:
        return self in (Source.RECIPE_ROOT, Source.USER_ROOT)

    @property
    def user(self) -> bool:
        return self in (Source.USER_ROOT, Source.USER_STAGE)


@dataclass(frozen=True)
class Override:
    """One override as one stage sees it. `said` is how it was written and where, for messages and provenance."""

    text: str  # in Hydra's grammar, without `stages.<name>.`
    key: str
    value: Any  # as Python data; None for a deletion
    is_group: bool
    added: bool  # written with +
    deleted: bool  # written with ~
    source: Source
    said: str
    group: str = ""  # the group's folder, without a package

    @property
    def top(self) -> str:
        return self.key.partition(".")[0]

    @property
    def forced(self) -> str:
        """The text with which Hydra sets a value whether or not its YAML names the key: the dataclass decides what exists."""
        return self.text if self.deleted else "++" + self.text.lstrip("+")


def read(text: str, source: Source, said: str, hydra: Hydra) -> Override:
    """Parse one override. Raises `ConfigError`."""
    try:
        parsed = parse(text)
        value = None if parsed.is_delete() else parsed.value()
        group = parsed.key_or_group
        is_group = hydra.is_group(group) and not isinstance(value, dict)
        if is_group and not parsed.is_delete():
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                raise ConfigError(f"override '{text}': '{group}' is a config group; choose one of {', '.join(hydra.options(group))}")
            hydra.check_choice(group, str(value), f"override '{text}'")
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"override '{text}'", said) if source.user else f"{said}: {error}") from None
    return Override(text, parsed.get_key_element().lstrip("+~"), value, is_group, parsed.is_add() or parsed.is_force_add(), parsed.is_delete(),
                    source, said, group)


@dataclass
class Reach:
    """Collects which root overrides found a stage, to refuse those that found none."""

    known: set[str] = field(default_factory=set)  # keys and groups of all stages
    used: set[str] = field(default_factory=set)  # `Override.said`

    def check(self, overrides: Iterable[Override], root_keys: Sequence[str]) -> None:
        overrides = list(overrides)
        replaced = {override.key for override in overrides if override.is_group and override.source.user}
        for override in overrides:
            if override.said in self.used or (not override.source.user and override.top in replaced):
                continue
            hint = nearest(override.key, {*self.known, *root_keys} - {override.key})
            raise ConfigError(f"{override.said}: no stage of this recipe has '{override.key}'.{hint}")


def select(stage: str, config: type, overrides: Sequence[Override], hydra: Hydra, registry: Registry, reach: Reach) -> list[Override]:
    """The overrides that reach this stage, group choices first, in ascending strength. `stage` is its Hydra config, such as `stage/rl`.

    A recipe's value for a plugin that a user's group choice replaced is dropped where the new plugin has no such key. Raises `ConfigError` for
    a stage override that does not fit.
    """
    groups = _groups(stage, config, overrides, hydra, reach)
    tree = hydra.compose(stage, [override.text for override in groups], resolve=False)  # an override may give what is referred to
    values = [override for override in overrides if not override.is_group]
    for override in values:  # `task.name=x` changes which keys `task` has
        outer, _, leaf = override.key.rpartition(".")
        if leaf == "name" and outer and isinstance(tree.get(outer), dict):
            tree[outer]["name"] = override.value
    reach.known.update(all_keys(config, tree, registry))
    replaced = {override.key for override in groups if override.source.user}
    taken = []
    for override in values:
        wrong = None if override.deleted and _has(tree, override.key) else _unknown(config, tree, override, registry)
        if wrong is None:
            taken.append(override)
            reach.used.add(override.said)
        elif not override.source.root and (override.source.user or override.top not in replaced):
            part, known = wrong
            choices = f" Keys there: {', '.join(known)}" if known else ""
            raise ConfigError(f"{override.said}: no such key '{override.key}'.{nearest(part, known)}{choices}")
    return [*groups, *taken]


def _groups(stage: str, config: type, overrides: Sequence[Override], hydra: Hydra, reach: Reach) -> list[Override]:
    chosen: list[Override] = []
    known: Mapping[str, Any] = hydra.choices(stage)
    fields = config.__dataclass_fields__  # type: ignore[attr-defined]
    for override in (override for override in overrides if override.is_group):
        if override.key not in known:
            known = {**known, **hydra.choices(stage, [choice.text for choice in chosen])}  # a choice may bring groups of its own
        if override.key in known or (override.added and override.group.partition("/")[0] in fields):
            anew = set() if override.deleted else hydra.overridden(override.group, str(override.value))  # it wins over weaker choices of these groups
            chosen = [choice for choice in chosen if choice.key not in anew] + [override]
            reach.used.add(override.said)
        elif not override.source.root:
            raise ConfigError(f"{override.said}: {stage} has no config group '{override.key}'.{nearest(override.key, known)} "
                              f"Groups there: {', '.join(known) or 'none'}")
    reach.known.update({**known, **hydra.choices(stage, [choice.text for choice in chosen])})
    return chosen


def _has(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True


def _unknown(config: type, tree: Mapping[str, Any], override: Override, registry: Registry) -> tuple[str, list[str]] | None:
    outer = override.key.rpartition(".")[0]
    wrong = unknown_part(config, tree, override.key, registry)
    if wrong is not None and override.added and outer and unknown_part(config, tree, outer, registry) is None:
        return None  # a new entry of a mapping; `strict` judges its key and content
    return wrong
