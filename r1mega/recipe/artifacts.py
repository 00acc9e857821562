"""The run folder's layout, and the manifest that says what a stage's folder holds, made by what, from what.

    RUN_DIR/  config.yaml  graph.json  summary.json  run.log  .lock  .digests.json
              stages/<name>/<fingerprint>/  config.yaml  run.json  epoch  manifest.json  result.json  logs/  artifacts/<output>/ ...
              stages/<name>/current -> <fingerprint> of the newest attempt
              stages/<name>/<fingerprint>.aside-<n>/  what was there before a rebuild
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from r1mega.errors import StageFailed, UserError
from r1mega.recipe import files
from r1mega.recipe.fingerprint import Basis
from r1mega.recipe.graph import GraphNode
from r1mega.recipe.known import KnownDigests

State = Literal["running", "done", "failed", "interrupted"]


@dataclass(frozen=True)
class RunFolder:
    """Where everything of a run lies."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def graph(self) -> Path:
        return self.root / "graph.json"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def log(self) -> Path:
        return self.root / "run.log"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @cached_property
    def digests(self) -> KnownDigests:
        """Of external files."""
        return KnownDigests(self.root / ".digests.json")

    def stage(self, name: str, fingerprint: str = "current") -> Path:
        """A stage's folder; without a fingerprint that of its newest attempt."""
        return self.root / "stages" / name / fingerprint


@dataclass
class Manifest:
    """`manifest.json`: the record of one stage folder, rewritten atomically whenever its state changes."""

    node: str
    stage: str
    made_by: str  # the plugin's owner
    fingerprint: str
    basis: Basis
    code: str  # digest of the stage plugin's source
    inputs: dict[str, dict[str, str]]  # name -> {"from": "<node>.<output>", "fingerprint": the maker's, "digest"}
    world_size: int
    state: State = "running"
    epoch: int = 0
    started: str = ""  # of the first attempt, ISO 8601 with zone
    ended: str | None = None
    seconds: float = 0.0  # over all attempts whose end was seen
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)  # output -> {"type", "digest", "files": {relative path: SHA-256}}
    versions: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    error: str | None = None

    def save(self, folder: Path) -> None:
        files.write_json(folder / "manifest.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """The manifest in a stage folder, None where there is none. Raises `UserError` when it is not one."""
        path = folder / "manifest.json"
        if not path.is_file():
            return None
        try:
            return cls(**files.read_json(path))
        except TypeError as error:
            raise UserError(f"{path}: not a manifest of this version of r1mega ({error}); remove {path.parent.resolve()} "
                            "to make that stage again") from error

    def missing(self, node: GraphNode, folder: Path) -> list[str]:
        """Declared outputs that are not recorded, or whose folder is gone."""
        return [name for name in node.output_types if name not in self.artifacts or not artifact(folder, name).exists()]


def artifact(stage_dir: Path, output: str) -> Path:
    """The folder of an output, as `StageContext.output` gives it."""
    return stage_dir / "artifacts" / output


def record(node: GraphNode, stage_dir: Path) -> dict[str, dict[str, Any]]:
    """The digests of all declared outputs. Raises `StageFailed` for one that was not written.

    A stage that knows a digest which does not depend on layout or times (tensor names, shapes and bytes; data rows) writes it to the file
    `content.sha256` of the artifact; else the digest covers all its files.
    """
    records = {}
    for output, kind in node.output_types.items():
        folder = artifact(stage_dir, output)
        found = files.digests(folder) if folder.exists() else {}
        if not found:
            raise StageFailed(f"stage '{node.name}' ({node.stage}, of '{node.owner}') ended without its output '{output}': nothing in {folder}")
        stated = folder / "content.sha256"
        digest = stated.read_text(encoding="utf-8").split()[0] if stated.is_file() else files.combined(found)
        records[output] = {"type": kind, "digest": digest, "files": found}
    return records


def damage(manifest: Manifest, stage_dir: Path, output: str) -> str | None:
    """What is wrong with an artifact's files by its manifest, naming the first; None when nothing is. All of them are read, every time."""
    folder = artifact(stage_dir, output)
    recorded: Mapping[str, str] = manifest.artifacts[output]["files"]
    found = files.digests(folder) if folder.exists() else {}
    for name in dict.fromkeys((*recorded, *found)):
        if recorded.get(name) != found.get(name):
            what = "is missing" if name not in found else "appeared after it was recorded" if name not in recorded else "is damaged"
            return f"{folder / name} {what} (SHA-256 against {stage_dir / 'manifest.json'})"
    return None


def package_versions() -> dict[str, str]:
    """The versions that made a result."""
    found = {"python": platform.python_version()}
    for package in ("r1mega", "torch", "megatron-core"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
