"""The import rule: which part of the code may know which library. Read from the source, then checked in a live driver process."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PURE = ("r1mega/types.py", "r1mega/algo/", "r1mega/rollout/", "r1mega/rewards/")
TORCH_FREE = ("r1mega.config", "r1mega.compose", "r1mega.cli", "r1mega.types", "r1mega.hookspecs", "r1mega.plugins", "r1mega.registry",
              "r1mega.recipe.runner")
HEAVY = ("torch", "megatron", "transformers", "reasoning_gym", "math_verify", "sympy", "datasets", "vllm")


def sources() -> list[str]:
    """Every Python file of the product, relative to the checkout."""
    return sorted(str(path.relative_to(ROOT)) for folder in ("r1mega", "plugins") for path in (ROOT / folder).rglob("*.py")
                  if "examples" not in path.parts and "__pycache__" not in path.parts)


def imports(source: str, *, run_time_only: bool = False) -> Iterator[tuple[str, int]]:
    """Top-level names of all modules that the source imports, with the line; `run_time_only` leaves `if TYPE_CHECKING:` out."""
    importers = ("import_module", "__import__")

    def called(node: ast.Call) -> str:
        return str(getattr(node.func, "attr", getattr(node.func, "id", "")))

    def visit(node: ast.AST) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and called(node) in importers:
            yield str(node.args[0].value).partition(".")[0], node.lineno
        if isinstance(node, ast.If) and run_time_only and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            children: list[ast.AST] = list(node.orelse)
        else:
            children = list(ast.iter_child_nodes(node))
        for child in children:
            yield from visit(child)
    yield from visit(ast.parse(source))


@functools.cache
def imports_of(path: str) -> list[tuple[str, int]]:
    return list(imports((ROOT / path).read_text()))


def violations(library: str, allowed: tuple[str, ...] = (), among: tuple[str, ...] = ("",)) -> list[str]:
    found = []
    for path in sources():
        if path.startswith(among) and not (allowed and path.startswith(allowed)):
            found += [f"{path}:{line} imports {name}" for name, line in imports_of(path) if name == library]
    return found


def test_the_reader_finds_every_form_of_import() -> None:
    source = "\n".join(["import megatron.core as m", "def f():", "    from vllm import LLM", "importlib.import_module('torch.nn')",
                        "if TYPE_CHECKING:", "    import sympy", "else:", "    import json", "from . import x"])
    names = {name for name, _ in imports(source)}
    assert {"megatron", "vllm", "torch", "sympy", "json"} <= names
    assert "sympy" not in {name for name, _ in imports(source, run_time_only=True)}
    assert "json" in {name for name, _ in imports(source, run_time_only=True)}


def test_there_is_something_to_read() -> None:
    for part in PURE:
        assert any(path.startswith(part) for path in sources()), f"no source file under {part}; has the layout changed?"


@pytest.mark.parametrize("library", ["megatron", "vllm"])
def test_types_algo_rollout_and_rewards_know_no_engine(library: str) -> None:
    assert violations(library, among=PURE) == []


def test_only_the_policy_imports_megatron() -> None:
    assert violations("megatron", allowed=("r1mega/policy/",)) == []


def test_only_the_vllm_generator_imports_vllm() -> None:
    assert violations("vllm", allowed=("plugins/rollouts/vllm",)) == []


def test_the_policy_imports_no_plugin() -> None:
    assert violations("r1mega_plugins", among=("r1mega/",)) == []


def in_a_fresh_process(code: str) -> list[str]:
    """Runs the code and returns which heavy libraries it has loaded."""
    report = f"\nimport sys\nprint('LOADED', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("LOADED")[2].split()


@pytest.mark.parametrize("module", TORCH_FREE)
def test_driver_modules_leave_heavy_libraries_out(module: str) -> None:
    assert in_a_fresh_process(f"import {module}") == []


def test_loading_every_plugin_leaves_heavy_libraries_out() -> None:
    assert in_a_fresh_process("import r1mega.plugins; assert list(r1mega.plugins.load().registry)") == []
