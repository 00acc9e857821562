"""Plugin discovery: built-ins and entry points of the group `r1mega`, through the same hooks."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import pluggy

from r1mega import hookspecs
from r1mega.errors import PluginError, nearest
from r1mega.registry import KINDS, Plugin, Registry

GROUP = "r1mega"
BUILT_IN = "r1mega_plugins"


class Host:
    """The loaded plugins: `host.registry` to look things up, `host.hook` to notify observers."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("r1mega")
        self.manager.add_hookspecs(hookspecs)
        self.registry = Registry()

    @property
    def hook(self) -> Any:
        return self.manager.hook

    def add(self, module: object, owner: str) -> None:
        """Register one plugin object under its owner's name. Raises `PluginError` for a hook that does not fit its specification."""
        try:
            self.manager.register(module, name=owner)
        except pluggy.PluginValidationError as error:
            raise PluginError(f"plugin '{owner}': {str(error).splitlines()[-1]}") from error
        except ValueError as error:
            raise PluginError(f"plugin '{owner}' is loaded twice: {error}") from error

    def finish(self) -> None:
        """Check every hook name, collect all registrations, freeze."""
        try:
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, "r1mega_spec")]
            wrong = str(error).partition("'")[2].partition("'")[0]
            raise PluginError(f"plugin '{self.manager.get_name(error.plugin)}' implements a hook that does not exist: '{wrong}'."
                              f"{nearest(wrong, hooks)}") from error
        for kind in KINDS:
            for implementation in getattr(self.hook, f"register_{kind}").get_hookimpls():
                self._collect(kind, implementation.plugin_name, implementation.function)
        self.registry.freeze()

    def _collect(self, kind: str, owner: str, function: Callable[..., None]) -> None:
        def register(name: str, factory: Callable[..., Any], *, config: type | None = None) -> None:
            self.registry.add(Plugin(kind, name, factory, config, owner))

        try:
            function(register)
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(f"plugin '{owner}' failed in register_{kind}: {type(error).__name__}: {error}") from error


def _import(name: str, owner: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise PluginError(f"plugin '{owner}' cannot be imported: {type(error).__name__}: {error}. "
                          "Fix it or uninstall it; r1mega does not run with a plugin half loaded") from error


def _built_in_modules() -> list[str]:
    package = _import(BUILT_IN, BUILT_IN)
    found = [module.name for module in pkgutil.walk_packages(package.__path__, prefix=f"{BUILT_IN}.")
             if not module.ispkg and ".examples" not in module.name]
    return sorted(found)


@functools.cache
def load() -> Host:
    """The plugin host of this process, loaded once: built-ins first, then installed entry points by name."""
    host = Host()
    for name in _built_in_modules():
        host.add(_import(name, name), name)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        owner = f"{entry.name} ({entry.dist.name} {entry.dist.version})" if entry.dist else entry.name
        try:
            module = entry.load()
        except Exception as error:
            raise PluginError(f"plugin '{owner}' cannot be imported: {type(error).__name__}: {error}. "
                              "Fix it or uninstall it; r1mega does not run with a plugin half loaded") from error
        host.add(module, owner)
    host.finish()
    return host
