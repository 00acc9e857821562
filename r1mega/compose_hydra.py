"""The one place that talks to Hydra: the search path, composing one config, its groups and files, and Hydra's errors as one-liners."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import GroupDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from r1mega.errors import ConfigError, PluginError, nearest
from r1mega.plugins import Host

CONF_PACKAGE = "r1mega_conf"


def conf_folder() -> Path:
    """The folder of the built-in YAML: the installed package `r1mega_conf`, or `conf/` of a checkout."""
    spec = importlib.util.find_spec(CONF_PACKAGE)
    found = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    found.append(Path(__file__).resolve().parent.parent / "conf")
    for folder in found:
        if folder.is_dir():
            return folder.resolve()
    raise ConfigError(f"r1mega's own conf folder is missing (looked in {', '.join(map(str, found))}); install r1mega again")


class _PluginSearchPath(SearchPathPlugin):
    """Adds what plugins' `config_search_path` hooks returned, after the built-in conf."""

    paths: ClassVar[list[tuple[str, str]]] = []  # (owner, path)

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for owner, path in self.paths:
            search_path.append(provider=owner, path=path)


def search_paths(host: Host) -> list[tuple[str, str]]:
    """(owner, Hydra path) of every plugin that brings config groups. Raises `PluginError` for a path Hydra cannot read."""
    found = []
    for implementation in host.hook.config_search_path.get_hookimpls():
        path = implementation.function()
        if path is None:
            continue
        if not isinstance(path, str) or not path.startswith(("pkg://", "file://")):
            raise PluginError(f"plugin '{implementation.plugin_name}': config_search_path must return 'pkg://package.folder' or "
                              f"'file:///folder', got {path!r}")
        found.append((implementation.plugin_name, path))
    return found


@dataclass(frozen=True)
class Layer:
    """One YAML file of a composition, in the order in which they are merged."""

    file: str  # as a user knows it: conf/rollout/megatron.yaml
    group: str  # rollout; empty for the primary config
    tree: Mapping[str, Any]  # its content, below its package


class Hydra:
    """Hydra, initialised with the built-in conf and the plugins' ones. Obtained from `session`.

    Results are kept for the length of the session: stages of one kind ask for the same ones, and each costs tens of milliseconds.
    """

    def __init__(self, conf: Path) -> None:
        self._loader = GlobalHydra.instance().config_loader()
        self._conf = conf
        self._known: dict[tuple[str, ...], Any] = {}
        self._composed: dict[tuple[str, ...], Any] = {}

    def _defaults(self, name: str, overrides: Sequence[str]) -> Any:
        key = (name, *overrides)
        if key not in self._known:
            with _one_line(name):
                self._known[key] = self._loader.compute_defaults_list(name, list(overrides), RunMode.RUN)
        return self._known[key]

    def compose(self, name: str, overrides: Sequence[str] = (), *, resolve: bool = True) -> dict[str, Any]:
        """The composed config as plain data, with interpolations resolved or as they are written. Raises `ConfigError`."""
        key = (name, str(resolve), *overrides)
        if key not in self._composed:
            with _one_line(name):
                self._composed[key] = OmegaConf.to_container(compose(name, list(overrides)), resolve=resolve)
        tree = copy.deepcopy(self._composed[key])
        if not isinstance(tree, dict):
            raise ConfigError(f"conf/{name}.yaml: expected a mapping of keys to values, got a {type(tree).__name__}")
        return {str(key): value for key, value in tree.items()}

    def layers(self, name: str, overrides: Sequence[str] = ()) -> list[Layer]:
        """The files that `compose` merges, first to last."""
        with _one_line(name):
            read = [self._layer(default.config_path, default.package or "") for default in self._defaults(name, overrides).defaults
                    if default.config_path and not default.config_path.startswith("hydra/")]
            return [layer for layer in read if layer is not None]

    def _layer(self, config_path: str, package: str) -> Layer | None:
        for source in self._loader.get_sources():
            if source.scheme() != "structured" and source.is_config(config_path):
                content = OmegaConf.to_container(source.load_config(config_path).config, resolve=False)
                for part in reversed(package.split(".") if package else []):
                    content = {part: content}
                return Layer(self._shown(source.full_path(), config_path), config_path.rpartition("/")[0],
                             content if isinstance(content, dict) else {})  # type: ignore[arg-type]
        return None

    def _shown(self, source: str, config_path: str) -> str:
        return f"conf/{config_path}.yaml" if source == f"file://{self._conf}" else f"{source}/{config_path}.yaml"

    def choices(self, name: str, overrides: Sequence[str] = ()) -> dict[str, str | None]:
        """Group -> the choice in force, for every group of config `name`."""
        known = self._defaults(name, overrides).overrides.known_choices
        return {group: choice for group, choice in known.items() if not group.startswith("hydra/")}

    def overridden(self, group: str, choice: str) -> set[str]:
        """The groups that `conf/<group>/<choice>.yaml` chooses anew (`override /task: ...` in its defaults)."""
        with _one_line(f"{group}/{choice}"):
            loaded = self._loader.repository.load_config(f"{group}/{choice}")
            listed = (loaded.defaults_list if loaded is not None else None) or []
            return {default.group.lstrip("/") for default in listed if isinstance(default, GroupDefault) and default.override and default.group}

    def options(self, group: str) -> list[str]:
        """The YAML files of a group, from every search path."""
        return list(self._loader.get_group_options(group))

    def is_group(self, group: str) -> bool:
        return any(source.is_group(group) for source in self._loader.get_sources())

    def check_choice(self, group: str, choice: str, said: str) -> None:
        """Raise `ConfigError` unless `conf/<group>/<choice>.yaml` exists. `said` is what the user wrote."""
        folder, _, leaf = f"{group}/{choice}".rpartition("/")
        options = self.options(folder)
        if leaf not in options:
            raise ConfigError(f"{said}: there is no {group} '{choice}'.{nearest(choice, options)} Choices: {', '.join(options) or 'none'}")


@contextmanager
def session(host: Host) -> Iterator[Hydra]:
    """Hydra's global state set up for the length of the block."""
    conf = conf_folder()
    Plugins.instance().register(_PluginSearchPath)
    outer = GlobalHydra.instance().hydra, _PluginSearchPath.paths  # someone else's, such as a program that embeds r1mega
    GlobalHydra.instance().clear()
    _PluginSearchPath.paths = search_paths(host)
    try:
        with initialize_config_dir(config_dir=str(conf), version_base="1.3", job_name="r1mega"):
            for source in GlobalHydra.instance().config_loader().get_sources():
                if not source.available():
                    raise PluginError(f"plugin '{source.provider}': its config_search_path {source.full_path()} does not exist")
            yield Hydra(conf)
    finally:
        GlobalHydra.instance().hydra, _PluginSearchPath.paths = outer


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """What Hydra, OmegaConf and YAML raise, as a `ConfigError` of one line."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{mark.name}:{mark.line + 1}" if mark else f"conf/{name}.yaml"
        raise ConfigError(f"{place}: malformed YAML: {error.problem or error.context}") from error
    except MissingConfigException as error:
        lines = [line.strip() for line in str(error).partition("Config search path")[0].splitlines() if line.strip()]
        head, _, options = " ".join(lines).partition("Available options in")
        raise ConfigError(head.strip() + (f". Choices in {options.strip()}" if options else "")) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        reason: BaseException = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) and not str(error) else error
        message = re.sub(r"full_key: (\S+) object_type=\S+", r"(at \1)", " ".join(str(reason).split()))  # OmegaConf's second half
        raise ConfigError(f"conf/{name}.yaml: {message}") from error


def parse(text: str) -> Any:
    """Hydra's parsed form of one override. Raises `ConfigError` for one that does not follow the grammar."""
    try:
        override = OverridesParser.create().parse_override(text)
    except (HydraException, ValueError) as error:
        if "=" not in text and not text.startswith("~"):
            raise ConfigError(f"override '{text}': expected key=value") from error
        raise ConfigError(f"override '{text}' is malformed: write key=value, and quote a value with spaces, commas, braces or '=' twice: "
                          "'key=\"a, b\"'") from error
    if override.is_sweep_override():
        raise ConfigError(f"override '{text}': several values; write a list as {override.key_or_group}=[a,b], or quote the value twice: "
                          f"'{override.key_or_group}=\"a,b\"'")
    return override
