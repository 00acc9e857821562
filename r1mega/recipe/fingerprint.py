"""What a stage's result depends on, as one hash, and the answer to "why is it stale?".

The basis of a fingerprint is plain data kept in the manifest: the settings that matter (`config.NOT_SEMANTIC` lists those that do not), the
stage plugin's name and version and those of the plugins it uses, the digests of its input artifacts, and the contents of external files (every
setting called `path` or `..._path`). Where a file lies does not matter, what is in it does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r1mega.config import NOT_SEMANTIC
from r1mega.errors import UserError
from r1mega.recipe import files
from r1mega.recipe.graph import GraphNode

# {"stage", "version", "plugins": {"<kind>/<name>": version}, "config": {dotted key: value}, "files": {dotted key: digest}, "inputs": {name: digest}}
Basis = dict[str, Any]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {dotted key: leaf}. Lists of mappings are entered by index; a whole float equals the integer (1.0 is 1)."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{dotted}.")
        else:
            leaves[dotted] = _same_number(value)
    return leaves


def _same_number(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_same_number(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no word for it
    return int(value) if isinstance(value, float) and value.is_integer() else value


def semantic(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The flattened settings that change a result."""
    return {key: value for key, value in flatten(tree).items()
            if not any(key == dropped or key.startswith(f"{dropped}.") for dropped in NOT_SEMANTIC)}


def external_files(tree: Mapping[str, Any]) -> dict[str, Path]:
    """The files and folders the settings point to, by dotted key: every leaf called `path` or `..._path` that is not empty."""
    return {key: Path(value) for key, value in semantic(tree).items() if _names_path(key.rpartition(".")[2]) and isinstance(value, str) and value}


def _names_path(leaf: str) -> bool:
    return leaf == "path" or leaf.endswith("_path")


def check_files(node: GraphNode) -> None:
    """Raise `UserError` for an external file of the node that is not there."""
    for key, path in external_files(node.tree).items():
        if not path.exists():
            raise UserError(f"stages.{node.name}: {key}: no such file or folder: {path} (looked for it in {Path.cwd()})")


def basis_of(node: GraphNode, inputs: Mapping[str, str], digest: Callable[[Path], str] = files.file_digest) -> Basis:
    """The basis of a node whose input artifacts have these digests; `digest` gives those of external files. Raises `UserError` for one that is
    not there."""
    check_files(node)
    external = external_files(node.tree)
    contents = {key: _contents(path, digest) for key, path in external.items()}
    config = {key: value for key, value in semantic(node.tree).items() if key not in external}
    return {"stage": node.stage, "version": node.version, "plugins": dict(node.plugins), "config": config, "files": contents, "inputs": dict(inputs)}


def _contents(path: Path, digest: Callable[[Path], str]) -> str:
    if not path.is_dir():
        return digest(path)
    found = {item.relative_to(path): item for item in sorted(path.rglob("*")) if item.is_file()}
    hidden = {name for name in found if any(part.startswith(".") for part in name.parts[:-1])}  # .cache, .git: nobody's content
    return files.combined({name.as_posix(): digest(item) for name, item in found.items() if name not in hidden})


def fingerprint(basis: Basis) -> str:
    """16 hexadecimal digits; the name of the stage's folder."""
    return hashlib.sha256(json.dumps(basis, sort_keys=True, default=str).encode()).hexdigest()[:16]


def explain(before: Basis, now: Basis) -> list[str]:
    """What changed between two bases, one phrase for each key, input, file or version."""
    changes = []
    if before["stage"] != now["stage"]:
        return [f"stage: {before['stage']} -> {now['stage']}"]  # whose settings are others altogether
    if before["version"] != now["version"]:
        changes.append(f"version of stage {now['stage']}: {before['version']} -> {now['version']}")
    here, there = before.get("plugins", {}), now.get("plugins", {})
    changes += [f"version of {name}: {here[name]} -> {there[name]}" for name in _changed(here, there) if name in here and name in there]
    changes += [f"input {name} changed" for name in _changed(before["inputs"], now["inputs"])]
    changes += [f"{key}: contents changed" for key in _changed(before["files"], now["files"])]
    for key in _changed(before["config"], now["config"]):
        if key not in {**before["files"], **now["files"]}:
            changes.append(f"{key}: {_show(before['config'], key)} -> {_show(now['config'], key)}")
    return changes


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys((*before, *now)) if (key in before) != (key in now) or before.get(key) != now.get(key)]


def _show(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], default=str) if key in values else "(absent)"
