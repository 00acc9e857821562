"""What keys a config dataclass has, plugins' settings included: the shape that `strict` checks and `compose` looks overrides up in."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from r1mega import config
from r1mega.errors import PluginError
from r1mega.registry import Registry

# A field typed `config.Plugin` under one of these names holds a plugin of that registry kind.
PLUGIN_FIELDS: Mapping[str, str] = {
    "model": "models", "tokenizer": "tokenizers", "task": "tasks", "algorithm": "algorithms", "rollout": "rollouts",
    "rewriter": "rewriters", "annotator": "annotators",
}


@dataclass(frozen=True)
class PluginOf:
    """The type of a plugin field: `name` and, flat beside it, the settings of that plugin."""

    kind: str


@dataclass(frozen=True)
class SettingsOf:
    """The type of a field that holds only the settings; the plugin's name is the field `name_field` beside it."""

    kind: str
    name_field: str = "name"


@functools.cache
def field_types(cls: type) -> Mapping[str, Any]:
    """Field name -> type of a dataclass, with plugin fields as `PluginOf` and `SettingsOf`."""
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        annotation = hints[field.name]
        if annotation == config.Plugin and field.name in PLUGIN_FIELDS:
            annotation = PluginOf(PLUGIN_FIELDS[field.name])
        elif issubclass(cls, config.RewardTerm) and field.name == "settings":
            annotation = SettingsOf("rewards")
        found[field.name] = annotation
    return found


def singular(kind: str) -> str:
    """`tasks` -> `task`, for messages."""
    return kind.removesuffix("s")


@dataclass(frozen=True)
class Level:
    """What may stand below one key: the known children with their types, or anything (`open`)."""

    children: Mapping[str, Any]
    open: bool = False


def level(annotation: Any, tree: Any, beside: Any, registry: Registry) -> Level | None:
    """The level below a value of type `annotation` whose present content is `tree`; None for a leaf. `beside` is the mapping it stands in."""
    tree = tree if isinstance(tree, Mapping) else {}
    if isinstance(annotation, PluginOf):
        if not tree:
            return None  # not used by this stage
        return Level({"name": str, **_settings(annotation.kind, tree.get("name"), registry)})
    if isinstance(annotation, SettingsOf):
        name = beside.get(annotation.name_field) if isinstance(beside, Mapping) else None
        return Level(_settings(annotation.kind, name, registry))
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return Level(field_types(annotation))
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        for member in args:
            below = level(member, tree, beside, registry)
            if below is not None:
                return below
        return None
    if origin is dict or annotation is dict or origin is Mapping:
        item = args[1] if args else Any
        if dataclasses.is_dataclass(item):
            return Level(dict.fromkeys(tree, item))
        return Level({}, open=True)
    return None


def _settings(kind: str, name: Any, registry: Registry) -> Mapping[str, Any]:
    try:
        plugin = registry.get(kind, str(name))
    except PluginError:
        return {}  # `strict` reports the unknown name
    return field_types(plugin.config) if plugin.config is not None else {}


def unknown_part(cls: Any, tree: Mapping[str, Any], key: str, registry: Registry) -> tuple[str, list[str]] | None:
    """None when `key` exists in the schema; else the first part of it that does not, and what is known there."""
    annotation, here, beside = cls, tree, None
    for part in key.split("."):
        below = level(annotation, here, beside, registry)
        if below is None:
            return part, []
        if below.open:
            return None
        if part not in below.children:
            return part, list(below.children)
        annotation, beside = below.children[part], here
        here = here.get(part, {}) if isinstance(here, Mapping) else {}
    return None


def all_keys(cls: Any, tree: Mapping[str, Any], registry: Registry, prefix: str = "", beside: Any = None) -> Iterator[str]:
    """Every dotted key of the schema, inner nodes included."""
    below = level(cls, tree, beside, registry)
    for name, annotation in (below.children if below else {}).items():
        key = f"{prefix}{name}"
        yield key
        yield from all_keys(annotation, tree.get(name, {}) if isinstance(tree, Mapping) else {}, registry, f"{key}.", tree)
