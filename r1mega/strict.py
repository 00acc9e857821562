"""Plain trees (parsed YAML) to config dataclasses, strictly: an unknown key, a wrong type or a missing value is one line that names the key.

No coercion, with three exceptions that YAML makes necessary: an integer is a float; `1e-4`, which YAML 1.1 reads as a string, is a float;
a list fills a tuple. Fields that hold a plugin (see `schema.py`) are checked against that plugin's own dataclass.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from r1mega.config import PluginChoice
from r1mega.errors import ConfigError, PluginError, R1MegaError, nearest
from r1mega.registry import Registry
from r1mega.schema import PluginOf, SettingsOf, field_types, singular

T = TypeVar("T")

MISSING = "???"  # Hydra's mark for a value that must be given
SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def build(cls: type[T], tree: Mapping[str, Any], where: str = "", *, registry: Registry | None = None,
          origin: Callable[[str], str | None] | None = None) -> T:
    """An instance of the dataclass `cls` from a plain tree.

    `where` prefixes the dotted keys of error messages; `registry` is needed when `cls` has plugin fields; `origin` says where a key's value
    came from. Raises `ConfigError`.
    """
    builder = _Builder(registry, origin)
    result = builder.dataclass(cls, tree, where)
    assert isinstance(result, cls)
    return result


def to_tree(value: Any) -> Any:
    """The plain data `build` would make `value` from: dataclasses to dicts, tuples to lists, enums and paths to strings."""
    if isinstance(value, PluginChoice):
        return {"name": value.name, **(to_tree(value.config) if value.config is not None else {})}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_tree(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_tree(item) for item in value]
    return value


def describe(annotation: Any) -> str:
    """A type in a user's words: `int`, `one of 'a', 'b'`, `list of str`, `int or null`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "one of " + ", ".join(repr(member.value) for member in annotation)
    if _is_list(annotation):
        inner = [arg for arg in args if arg is not Ellipsis]
        if origin is tuple and Ellipsis not in args:
            return f"list of {len(args)} values ({', '.join(describe(arg) for arg in args)})"
        return f"list of {describe(inner[0])}" if inner else "list"
    if dataclasses.is_dataclass(annotation) or _is_mapping(annotation) or isinstance(annotation, PluginOf | SettingsOf):
        return "a mapping of keys to values"
    if annotation is Path:
        return "path (str)"
    return getattr(annotation, "__name__", str(annotation))


def _is_list(annotation: Any) -> bool:
    return (typing.get_origin(annotation) or annotation) in (list, tuple, Sequence)


def _is_mapping(annotation: Any) -> bool:
    return (typing.get_origin(annotation) or annotation) in (dict, Mapping)


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


class _Builder:
    """One walk over a tree; `key` is always the full dotted key of the value at hand."""

    def __init__(self, registry: Registry | None, origin: Callable[[str], str | None] | None) -> None:
        self.registry = registry
        self.origin = origin

    def error(self, key: str, message: str, *, at: str | None = None) -> ConfigError:
        source = self.origin(at or key) if self.origin else None
        return ConfigError(f"{key}: {message}" + (f" (set by {source})" if source else ""))

    def wrong(self, key: str, annotation: Any, value: Any) -> ConfigError:
        shown = "null" if value is None else "a mapping" if isinstance(value, Mapping) else f"{value!r} ({type(value).__name__})"
        literals = [arg for member in (annotation, *typing.get_args(annotation)) if typing.get_origin(member) is typing.Literal
                    for arg in typing.get_args(member)]
        hint = nearest(value, [arg for arg in literals if isinstance(arg, str)]) if isinstance(value, str) else ""
        if isinstance(value, str) and value == MISSING:
            return self.error(key, f"has no value; give one: {key}=<{describe(annotation)}>")
        return self.error(key, f"expected {describe(annotation)}, got {shown}.{hint}")

    def mapping(self, value: Any, key: str, annotation: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self.wrong(key or "the config", annotation, value)
        return value

    def dataclass(self, cls: Any, tree: Any, where: str, *, extra: Sequence[str] = ()) -> Any:
        """`extra` are keys that stand beside the dataclass's own, such as a plugin's `name`."""
        tree = self.mapping(tree, where, cls)
        known = field_types(cls)
        for name in tree:
            if name not in known and name not in extra:
                key = _join(where, name)
                raise self.error(key, f"no such key.{nearest(str(name), [*known, *extra])} Keys here: {', '.join([*extra, *known]) or 'none'}")
        values = {name: self.value(annotation, tree[name], _join(where, name), beside=tree)
                  for name, annotation in known.items() if name in tree}
        for field in dataclasses.fields(cls):
            if field.name not in known or field.name in values:
                continue
            if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING:
                values[field.name] = self.default(field, known[field.name], _join(where, field.name), tree)
            else:
                key = _join(where, field.name)
                raise self.error(key, f"missing; give one: {key}=<{describe(known[field.name])}>", at=where)
        try:
            return cls(**values)
        except R1MegaError:
            raise
        except (ValueError, TypeError) as error:  # a dataclass's own checks
            raise self.error(where or cls.__name__, str(error)) from error

    def default(self, field: dataclasses.Field[Any], annotation: Any, key: str, beside: Mapping[str, Any]) -> Any:
        value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        # only plugin fields need work: their default is plain data, or nothing where the plugin is not used
        return self.value(annotation, value, key, beside=beside) if isinstance(annotation, PluginOf | SettingsOf) else value

    def value(self, annotation: Any, value: Any, key: str, *, beside: Mapping[str, Any] | None = None) -> Any:
        if isinstance(annotation, PluginOf):
            return self.plugin(annotation, value, key)
        if isinstance(annotation, SettingsOf):
            return self.settings(annotation, value, key, str((beside or {}).get(annotation.name_field, "")))
        if dataclasses.is_dataclass(annotation):
            return self.dataclass(annotation, value, key)
        origin, args = typing.get_origin(annotation), typing.get_args(annotation)
        if origin in (typing.Union, types.UnionType):
            return self.union(annotation, args, value, key)
        if origin is typing.Literal:
            if not any(type(value) is type(arg) and value == arg for arg in args):
                raise self.wrong(key, annotation, value)
            return value
        if _is_list(annotation):
            return self.sequence(annotation, value, key)
        if _is_mapping(annotation):
            item = args[1] if args else Any
            return {str(name): self.value(item, entry, _join(key, name)) for name, entry in self.mapping(value, key, annotation).items()}
        return self.scalar(annotation, value, key)

    def scalar(self, annotation: Any, value: Any, key: str) -> Any:
        if isinstance(value, str) and value == MISSING:
            raise self.wrong(key, annotation, value)
        if annotation is Any or annotation is object:
            return value
        if annotation is float:
            if isinstance(value, str) and SCIENTIFIC.fullmatch(value):
                return float(value)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            raise self.wrong(key, annotation, value)
        if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
            for member in annotation:
                if value == member.value:
                    return member
            raise self.wrong(key, annotation, value)
        if annotation is Path and isinstance(value, str | Path):
            return Path(value)
        if isinstance(annotation, type) and type(value) is annotation:  # exact: True is no int
            return value
        raise self.wrong(key, annotation, value)

    def union(self, annotation: Any, members: Sequence[Any], value: Any, key: str) -> Any:
        if value is None and type(None) in members:
            return None
        candidates = [member for member in members if member is not type(None)]
        if len(candidates) == 1 and (dataclasses.is_dataclass(candidates[0]) or isinstance(value, Mapping | list)):
            return self.value(candidates[0], value, key)  # its error is the precise one
        exact = [member for member in candidates if type(value) is member]  # 3 for `float | int` stays an int
        for member in exact or candidates:
            try:
                return self.value(member, value, key)
            except ConfigError:
                continue
        raise self.wrong(key, candidates[0] if len(candidates) == 1 and value == MISSING else annotation, value)

    def sequence(self, annotation: Any, value: Any, key: str) -> Any:
        if not isinstance(value, list | tuple):
            raise self.wrong(key, annotation, value)
        origin, args = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
        if origin is tuple and args and Ellipsis not in args:
            if len(args) != len(value):
                raise self.wrong(key, annotation, value)
            items = list(args)
        else:
            items = [args[0] if args else Any] * len(value)
        built = [self.value(item, entry, f"{key}[{index}]") for index, (item, entry) in enumerate(zip(items, value, strict=True))]
        return tuple(built) if origin is tuple else built

    def plugin(self, annotation: PluginOf, value: Any, key: str) -> Any:
        if isinstance(value, PluginChoice) or not value:
            return value if value else {}  # {}: this stage does not use that plugin
        value = self.mapping(value, key, annotation)
        registry = self.plugins(key)
        name = value.get("name", MISSING)
        if name == MISSING:
            known = ", ".join(registry.names(annotation.kind)) or "none"
            raise self.error(f"{key}.name", f"missing; it chooses the plugin. Known: {known}", at=key)
        if not isinstance(name, str):
            raise self.wrong(f"{key}.name", str, name)
        return PluginChoice(name, self.configure(annotation.kind, name, value, key, f"{key}.name", extra=("name",)))

    def settings(self, annotation: SettingsOf, value: Any, key: str, name: str) -> Any:
        if value is not None and not isinstance(value, Mapping):
            raise self.wrong(key, annotation, value)
        name_key = f"{key.rpartition('.')[0]}.{annotation.name_field}"
        # stays plain data, checked and complete: reward workers get it by pipe and build the plugin's dataclass themselves
        return to_tree(self.configure(annotation.kind, name, value or {}, key, name_key)) or {}

    def configure(self, kind: str, name: str, tree: Mapping[str, Any], key: str, name_key: str, *, extra: Sequence[str] = ()) -> Any:
        """The plugin's config dataclass instance; None when it takes no config."""
        try:
            plugin = self.plugins(key).get(kind, name)
        except PluginError as error:
            raise self.error(name_key, str(error)) from error
        if plugin.config is not None:
            return self.dataclass(plugin.config, tree, key, extra=extra)
        for unknown in tree:
            if unknown not in extra:
                raise self.error(_join(key, unknown), f"no such key: {singular(kind)} '{name}' takes no settings")
        return None

    def plugins(self, key: str) -> Registry:
        if self.registry is None:
            raise ValueError(f"{key} holds a plugin: strict.build needs the registry")
        return self.registry
