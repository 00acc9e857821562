"""The contract and its documentation say the same: signatures, docstrings, the list in plugins/README.md, the built-ins."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from r1mega import hookspecs, plugins
from r1mega.registry import KINDS, Plugin

ROOT = Path(__file__).resolve().parents[2]
HOOKS = {name: value for name, value in vars(hookspecs).items() if hasattr(value, "r1mega_spec")}
OBSERVERS = {"stage_start", "step_end", "stage_end"}


def test_every_kind_has_its_hook_and_every_hook_its_kind() -> None:
    assert {name for name in HOOKS if name.startswith("register_")} == {f"register_{kind}" for kind in KINDS}
    assert set(HOOKS) == {f"register_{kind}" for kind in KINDS} | OBSERVERS | {"config_search_path"}


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_every_hook_is_documented_and_annotated(hook: str) -> None:
    function = HOOKS[hook]
    doc = inspect.getdoc(function) or ""
    assert len(doc) > 30, f"{hook} needs a docstring that tells what an implementation does"
    signature = inspect.signature(function)
    missing = [name for name, parameter in signature.parameters.items() if parameter.annotation is inspect.Parameter.empty]
    assert not missing, f"{hook}: arguments without a type: {missing}"
    assert signature.return_annotation is not inspect.Signature.empty, f"{hook}: no return type"


@pytest.mark.parametrize("hook", sorted(name for name in HOOKS if name.startswith("register_")))
def test_a_register_hook_takes_register_alone_and_says_how_the_factory_is_called(hook: str) -> None:
    assert list(inspect.signature(HOOKS[hook]).parameters) == ["register"]
    assert "`factory(config" in (inspect.getdoc(HOOKS[hook]) or ""), f"{hook}: its docstring must show the factory's call"


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_the_plugins_readme_lists_the_hook_with_its_arguments(hook: str) -> None:
    arguments = ", ".join(inspect.signature(HOOKS[hook]).parameters)
    assert f"`{hook}({arguments})`" in (ROOT / "plugins" / "README.md").read_text(), f"plugins/README.md must list `{hook}({arguments})`"


def built_ins() -> list[Plugin]:
    return [plugin for plugin in plugins.load().registry if plugin.owner.startswith(plugins.BUILT_IN)]


def test_every_built_in_has_a_documentation_line_and_a_version_of_its_own() -> None:
    found = built_ins()
    assert found
    undocumented = [f"{plugin.kind} {plugin.name}" for plugin in found if not plugin.doc]
    unversioned = [f"{plugin.kind} {plugin.name}" for plugin in found if not isinstance(getattr(plugin.factory, "version", None), str)]
    assert not undocumented, f"factories without a docstring: {undocumented}"
    assert not unversioned, f"factories without a `version` string: {unversioned}"


def test_every_built_in_config_is_a_documented_dataclass() -> None:
    def documented(config: type) -> bool:  # a dataclass without a docstring gets its signature as one
        return bool(config.__doc__) and not str(config.__doc__).startswith(f"{config.__name__}(")

    undocumented = [f"{plugin.kind} {plugin.name}" for plugin in built_ins() if plugin.config is not None and not documented(plugin.config)]
    assert not undocumented, f"config dataclasses without a docstring: {undocumented}"


@pytest.mark.parametrize("protocol", ["Stage", "Reward", "Generator", "Algorithm", "Task", "Tokenizer"])
def test_the_file_named_as_example_exists(protocol: str) -> None:
    example = (inspect.getdoc(getattr(hookspecs, protocol)) or "").partition("Example: `")[2].partition("`")[0]
    assert example, f"{protocol} names no example"
    assert (ROOT / example).is_file(), f"{protocol} names {example}, which is not there"
