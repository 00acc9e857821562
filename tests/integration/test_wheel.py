"""What `pip install r1mega` gives: a wheel with every subpackage and every YAML file, that works far from any checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest

# what goes into a wheel, as the sources that decide it; copied so that a build leaves no trace in the checkout
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "r1mega", "plugins", "conf")
INSTALLED = {"plugins": "r1mega_plugins", "conf": "r1mega_conf"}


def run(*command: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


def product_files(repo: Path) -> set[str]:
    """Names inside the wheel of every module, YAML file and piece of the report of the checkout that belongs there."""
    found = set()
    for folder in ("r1mega", "plugins", "conf"):
        for path in (repo / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".css", ".js") and not {"examples", "__pycache__"} & set(path.parts):
                found.add(str(Path(INSTALLED.get(folder, folder)) / path.relative_to(repo / folder)))
    return found


def setuptools_at_hand() -> bool:
    """Whether the one of this environment can build us: pyproject.toml asks for 77."""
    try:
        return int(metadata.version("setuptools").partition(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, with the setuptools at hand where it is new enough, else with one from the package index."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (repo / name).is_dir():
            shutil.copytree(repo / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(repo / name, source / name)
    isolation = ["--no-build-isolation"] if setuptools_at_hand() else []
    built = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(out), *isolation, str(source), cwd=source)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("r1mega-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    done = run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=target)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def r1mega_of(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m r1mega` of the installed wheel, its dependencies from this environment, from a folder that is no checkout.

    `sys.path` is set before anything is found: an editable installation of the checkout in this environment must not be the one that answers.
    """
    code = ("import sys, runpy, r1mega; assert r1mega.__file__.startswith(sys.argv[1]), r1mega.__file__; "
            "import r1mega_plugins; assert r1mega_plugins.__file__.startswith(sys.argv[1]), r1mega_plugins.__file__; "
            "sys.argv[:2] = ['r1mega']; runpy.run_module('r1mega', run_name='__main__')")
    return run(sys.executable, "-c", code, str(site), *arguments, cwd=cwd, env={**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"})


def test_the_wheel_holds_every_module_and_yaml_file(repo: Path, wheel: Path) -> None:
    missing = product_files(repo) - set(zipfile.ZipFile(wheel).namelist())
    assert not missing, f"in the checkout but not in the wheel (packages and package-data in pyproject.toml): {sorted(missing)}"


def test_the_wheel_holds_nothing_else(repo: Path, wheel: Path) -> None:
    extra = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} - product_files(repo)
    assert not extra, f"in the wheel but not part of the product: {sorted(extra)}"


def test_a_recipe_is_composed_from_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    done = r1mega_of(installed, "run", "recipe=r1_zero_tiny", "--cfg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "zero" in done.stdout
    assert "grpo" in done.stdout
    assert not list(tmp_path.iterdir()), "--cfg must leave nothing behind"


def test_the_built_in_plugins_are_found_in_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    done = r1mega_of(installed, "plugins", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("accuracy", "grpo", "arithmetic"):
        assert name in done.stdout


def test_a_misspelt_override_is_one_line_and_exit_code_2(installed: Path, tmp_path: Path) -> None:
    done = r1mega_of(installed, "run", "recipe=r1_zero_tiny", "algoritm=grpo", "--cfg", cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert "algorithm" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
