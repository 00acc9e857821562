"""The plugin host. Outside plugins are real entry points: a distribution on the path of a fresh process."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import r1mega
from r1mega import hookspecs, plugins
from r1mega.errors import PluginError
from r1mega.registry import Plugin, Registry


class Nothing:
    """A reward that is never called."""

    version = "7"


def plugin_module(source: str, name: str = "outside") -> ModuleType:
    """A module with that source, as an import would make it."""
    module = ModuleType(name)
    exec("from r1mega import hookimpl\n" + source, module.__dict__)
    return module


def load(*modules: ModuleType) -> plugins.Host:
    host = plugins.Host()
    for module in modules:
        host.add(module, module.__name__)
    host.finish()
    return host


REWARD = """
class Short:
    '''1 for a short answer.

    And more lines.'''
    version = "3"
@hookimpl
def register_rewards(register):
    register("short", Short)
"""


def test_a_registered_plugin_is_found_with_owner_version_and_doc_line() -> None:
    plugin = load(plugin_module(REWARD, "mine")).registry.get("rewards", "short")
    assert (plugin.owner, plugin.version, plugin.doc, plugin.config) == ("mine", "3", "1 for a short answer.", None)


def test_a_misspelt_hook_is_refused_with_the_nearest_spelling() -> None:
    module = plugin_module("@hookimpl\ndef register_reward(register): pass", "mine")
    with pytest.raises(PluginError, match=r"'mine'.*'register_reward'.*Did you mean 'register_rewards'\?"):
        load(module)


def test_a_misspelt_plugin_name_is_refused_with_the_nearest_spelling() -> None:
    registry = load(plugin_module(REWARD)).registry
    with pytest.raises(PluginError, match=r"no rewards plugin is called 'shrot'.*'short'.*Known: short"):
        registry.get("rewards", "shrot")


def test_a_wrong_hook_argument_names_the_owner_and_the_argument() -> None:
    module = plugin_module("@hookimpl\ndef register_rewards(registry): pass", "mine")
    with pytest.raises(PluginError, match=r"'mine'.*registry"):
        load(module)


def test_one_name_registered_twice_names_both_owners() -> None:
    with pytest.raises(PluginError, match=r"'short' is registered twice") as error:
        load(plugin_module(REWARD, "first"), plugin_module(REWARD, "second"))
    assert "'first'" in str(error.value)
    assert "'second'" in str(error.value)


def test_one_name_in_two_kinds_is_no_conflict() -> None:
    both = REWARD + "\n@hookimpl\ndef register_tasks(register): register('short', Short)"
    registry = load(plugin_module(both)).registry
    assert registry.names("rewards") == registry.names("tasks") == ["short"]


def test_one_owner_loaded_twice_is_refused() -> None:
    host = plugins.Host()
    host.add(plugin_module(REWARD), "same")
    with pytest.raises(PluginError, match="'same' is loaded twice"):
        host.add(plugin_module(REWARD), "same")


def test_a_hook_that_raises_names_owner_hook_and_cause() -> None:
    module = plugin_module("@hookimpl\ndef register_tasks(register): raise KeyError('lost')", "mine")
    with pytest.raises(PluginError, match=r"'mine' failed in register_tasks: KeyError: 'lost'"):
        load(module)


def test_registering_after_start_up_is_refused() -> None:
    kept: list[Callable[..., None]] = []
    module = plugin_module("@hookimpl\ndef register_rewards(register): kept.append(register)", "late")
    module.__dict__["kept"] = kept
    load(module)
    with pytest.raises(PluginError, match="'late' registers rewards 'x' after start-up"):
        kept[0]("x", Nothing)


def test_a_config_that_is_no_dataclass_is_refused() -> None:
    with pytest.raises(PluginError, match=r"'mine'.*'x' must be a dataclass type"):
        Registry().add(Plugin("rewards", "x", Nothing, dict, "mine"))


def test_observers_are_notified_through_the_same_host(tmp_path: Path) -> None:
    seen: list[Any] = []
    module = plugin_module("@hookimpl\ndef step_end(stage, metrics): seen.append((stage, metrics['loss']))")
    module.__dict__["seen"] = seen
    arguments = dict.fromkeys(inspect.signature(hookspecs.step_end).parameters)
    load(module).hook.step_end(**{**arguments, "run_dir": tmp_path, "stage": "zero", "metrics": {"loss": 0.5}})
    assert seen == [("zero", 0.5)]


@dataclass(frozen=True)
class Installed:
    """A folder with outside distributions; `report` loads all plugins in a fresh process that has it on its path."""

    folder: Path

    def add(self, name: str, source: str) -> None:
        info = self.folder / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[r1mega]\n{name} = {name}_module\n")
        (self.folder / f"{name}_module.py").write_text(source)

    def report(self) -> str:
        code = ("from r1mega import errors, plugins\ntry:\n    host = plugins.load()\n"
                "    print([(p.name, p.owner, p.version) for p in host.registry if p.kind == 'rewards'])\n"
                "except errors.PluginError as error:\n    print('REFUSED', error.exit_code, error)")
        root = Path(r1mega.__file__).resolve().parents[1]
        code = f"import sys; sys.path.append({str(self.folder)!r})\n{code}"
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return Installed(tmp_path)


def test_an_entry_point_is_discovered_beside_the_built_ins(installed: Installed) -> None:
    installed.add("outsider", "from r1mega import hookimpl\n" + REWARD)
    assert "('short', 'outsider (outsider 1.2)', '3')" in installed.report()


def test_an_entry_point_that_cannot_be_imported_stops_with_owner_and_cause(installed: Installed) -> None:
    installed.add("broken", "import no_such_module")
    report = installed.report()
    assert report.startswith("REFUSED 2 plugin 'broken (broken 1.2)' cannot be imported: ModuleNotFoundError:"), report
    assert "'no_such_module'" in report


def test_two_entry_points_with_one_plugin_name_are_both_named(installed: Installed) -> None:
    installed.add("one", "from r1mega import hookimpl\n" + REWARD)
    installed.add("two", "from r1mega import hookimpl\n" + REWARD)
    report = installed.report()
    assert "REFUSED 2 rewards 'short' is registered twice: by 'one (one 1.2)' and by 'two (two 1.2)'" in report
