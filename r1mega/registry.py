"""Named plugins by kind. Filled once by `plugins.load()`, frozen, then only read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any

from r1mega.errors import PluginError, nearest

KINDS = ("stages", "rewards", "rollouts", "algorithms", "models", "tasks", "tokenizers", "rewriters", "annotators")


@dataclass(frozen=True)
class Plugin:
    """One registered plugin."""

    kind: str
    name: str
    factory: Callable[..., Any]
    config: type | None
    owner: str  # the plugin module or distribution that registered it

    @property
    def version(self) -> str:
        return str(getattr(self.factory, "version", "1"))

    @property
    def doc(self) -> str:
        """The first line of the factory's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]


class Registry:
    """All plugins: `registry.get("rewards", "accuracy")`. Adding after `freeze()` or twice under one name is an error."""

    def __init__(self) -> None:
        self._plugins: dict[str, dict[str, Plugin]] = {kind: {} for kind in KINDS}
        self._frozen = False

    def add(self, plugin: Plugin) -> None:
        if self._frozen:
            raise PluginError(f"'{plugin.owner}' registers {plugin.kind} '{plugin.name}' after start-up; register in a hook instead")
        if plugin.config is not None and not is_dataclass(plugin.config):
            raise PluginError(f"'{plugin.owner}': the config of {plugin.kind} '{plugin.name}' must be a dataclass type, got {plugin.config!r}")
        there = self._plugins[plugin.kind].get(plugin.name)
        if there is not None:
            raise PluginError(f"{plugin.kind} '{plugin.name}' is registered twice: by '{there.owner}' and by '{plugin.owner}'; rename one of them")
        self._plugins[plugin.kind][plugin.name] = plugin

    def freeze(self) -> None:
        self._frozen = True

    def get(self, kind: str, name: str) -> Plugin:
        """The plugin of that kind and name. Raises `PluginError` with the nearest spelling."""
        known = self._plugins[kind]
        if name not in known:
            raise PluginError(f"no {kind} plugin is called '{name}'.{nearest(name, known)} Known: {', '.join(sorted(known)) or 'none'}")
        return known[name]

    def names(self, kind: str) -> list[str]:
        return sorted(self._plugins[kind])

    def __iter__(self) -> Iterator[Plugin]:
        for kind in KINDS:
            yield from (self._plugins[kind][name] for name in sorted(self._plugins[kind]))
