"""What the README shows works: its plugin runs through the plugin host, its command lines compose, its files exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from r1mega import plugins
from r1mega.types import RewardSample

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """All fenced blocks of that language; "" for those without one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [block for named, block in found if named == language]


def commands() -> list[str]:
    """Every `r1mega run` line of the README, without its comment."""
    lines = [line.partition("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line.removeprefix("r1mega ") for line in lines if line.startswith("r1mega run ")]


def test_the_plugin_is_complete_short_and_scores() -> None:
    (source,) = blocks("python")
    assert len([line for line in source.splitlines() if line.strip()]) <= 30
    module = ModuleType("brief")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(source, "README.md", "exec"), module.__dict__)
        host = plugins.Host()
        host.add(module, "brief")
        host.finish()
        plugin = host.registry.get("rewards", "brief")
        assert plugin.doc
        assert plugin.version == "1"
        assert plugin.config is not None
        reward = plugin.factory(plugin.config(limit=10))
        scores = reward.score([RewardSample("q", ""), RewardSample("q", "12345"), RewardSample("q", "x" * 99)])
        assert [score.value for score in scores] == [1.0, 0.5, 0.0]
    finally:
        del sys.modules[module.__name__]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the README's plugin, installed as its text says."""
    (tmp_path / "brief.py").write_text(blocks("python")[0])
    info = tmp_path / "brief-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brief\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(blocks("toml")[0].replace("project.entry-points.", "").replace('"', ""))
    return tmp_path


def test_every_command_line_composes(installed: Path) -> None:
    (release := installed / "release").mkdir()  # what the README calls FOLDER
    (release / "config.json").write_text(json.dumps({
        "model_type": "qwen3", "vocab_size": 64, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}))
    lines = [shlex.split(line.replace("FOLDER", str(release))) for line in commands()]
    assert len(lines) >= 5
    code = ("import sys; sys.path.append(sys.argv[1])\nfrom r1mega import cli\n"
            f"for line in {lines!r}:\n    print('LINE', *line, 'ENDED', cli.main([*line, *([] if '--cfg' in line else ['--cfg'])]))")
    done = subprocess.run([sys.executable, "-c", code, str(installed)], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    ended = re.findall(r"LINE (.*) ENDED (\d+)", done.stdout)
    assert [line for line, status in ended if status != "0"] == [], done.stderr
    assert len(ended) == len(lines)


@pytest.mark.parametrize("folder", ["", "r1mega", "plugins", "conf", "launch", "tests"])
def test_every_folder_has_a_readme_whose_links_lead_somewhere(folder: str) -> None:
    path = ROOT / folder / "README.md"
    assert path.is_file(), f"{path.relative_to(ROOT)} is missing"
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}, which is not there"


def test_the_folder_tree_is_the_real_one() -> None:
    (tree,) = [block for block in blocks("") if "hookspecs.py" in block]
    for line in tree.splitlines():
        name = line.split()[0]
        where = ROOT / "r1mega" / name if line.startswith("  ") else ROOT / name
        assert where.exists(), f"the README's folder tree names {name}, which is not there"
