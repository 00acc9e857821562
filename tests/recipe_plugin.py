"""Runs of a recipe that an installed outside plugin brings: the way a user's own recipe reaches the program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

SEARCH_PATH = """
@hookimpl
def config_search_path():
    return f"file://{Path(__file__).parent / 'conf'}"
"""


def install(folder: Path, name: str, recipe: str, code: str = "") -> Path:
    """Lay out a distribution `name` in `folder` as pip would, with `recipe` as its one recipe and `code` ahead of its hook."""
    info, recipes = folder / f"{name}-1.0.dist-info", folder / "conf" / "recipe"
    for made in (info, recipes):
        made.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[r1mega]\n{name} = {name}_plugin\n")
    (folder / f"{name}_plugin.py").write_text(f"from pathlib import Path\nfrom r1mega import hookimpl\n{code}\n{SEARCH_PATH}")
    (recipes / f"{name}.yaml").write_text(recipe)
    return folder


class Runs:
    """Run folders of one such recipe. All but the run called `base` begin as a copy of that one."""

    def __init__(self, folder: Path, name: str, recipe: str, code: str = "") -> None:
        self.folder, self.name = folder, name
        plugin = install(folder / "plugin", name, recipe, code)
        path = os.pathsep.join(filter(None, (str(plugin), os.environ.get("PYTHONPATH"))))
        self.environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def start(self, run: str, *overrides: str, **environment: str) -> subprocess.Popen[str]:
        if run != "base" and not (self.folder / run).exists() and (self.folder / "base").exists():
            shutil.copytree(self.folder / "base", self.folder / run, symlinks=True)
        command = [sys.executable, "-m", "r1mega", "run", f"recipe={self.name}", f"output_dir={self.folder / run}", *overrides]
        return subprocess.Popen(command, env=self.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, run: str, *overrides: str, code: int = 0, **environment: str) -> str:
        """To its end, which must be `code`; what it said."""
        process = self.start(run, *overrides, **environment)
        try:
            said = process.communicate(timeout=200)[0]
        finally:
            process.kill()  # of no effect on one that has ended
        assert process.returncode == code, said[-3000:]
        return said

    def stage(self, run: str, stage: str) -> Path:
        return self.folder / run / "stages" / stage / "current"

    def artifact(self, run: str, stage: str, output: str) -> Path:
        return self.stage(run, stage) / "artifacts" / output

    def metrics(self, run: str, stage: str) -> dict[str, Any]:
        """The closing ones."""
        found: dict[str, Any] = json.loads((self.folder / run / "summary.json").read_text())["stages"][stage]["metrics"]
        return found
