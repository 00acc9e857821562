"""The model that a folder holds: a Hugging Face folder by its config.json, or one of our checkpoints by its architecture.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from r1mega import hookimpl
from r1mega.errors import ConfigError, DataError
from r1mega.hookspecs import Register
from r1mega.policy.architecture import Architecture

OURS, THEIRS = "architecture.json", "config.json"


@dataclass(frozen=True)
class ReleasedConfig:
    """Where it is stated."""

    required_paths: ClassVar[tuple[str, ...]] = ("path",)
    path: str = ""  # the folder, or the file config.json or architecture.json in it; no default
    max_position_embeddings: int | None = None  # less than the file says saves memory; None: as it says
    mtp_num_layers: int | None = None  # 0 leaves multi-token-prediction layers out; None: as the file says
    ignore: list[str] = field(default_factory=list)  # keys of config.json that are unknown here and change nothing

    def __post_init__(self) -> None:
        """The path becomes that of the file: what else lies in the folder does not change the model."""
        path = Path(self.path).expanduser()
        if not self.path or path.is_file():
            return
        file = next((path / name for name in (OURS, THEIRS) if (path / name).is_file()), None)
        if file is None:
            raise ConfigError(f"model.path: '{self.path}' holds neither {THEIRS} nor {OURS} (looked in {Path.cwd()}); name the folder of a Hugging Face "
                              "model, or artifacts/checkpoint of a stage")
        object.__setattr__(self, "path", str(file))


def released(config: ReleasedConfig) -> Architecture:
    """Whatever a folder's config.json or architecture.json says."""
    if not config.path:
        raise ConfigError("model.path must name the folder of a Hugging Face model, or artifacts/checkpoint of a stage")
    path = Path(config.path)
    architecture = _ours(path) if path.name == OURS else _theirs(path, config.ignore)
    changes = {name: value for name in ("max_position_embeddings", "mtp_num_layers") if (value := getattr(config, name)) is not None}
    if changes.get("mtp_num_layers") not in (None, 0, architecture.mtp_num_layers):
        raise ConfigError(f"model.mtp_num_layers={changes['mtp_num_layers']}: {path} has {architecture.mtp_num_layers}; give 0 to leave them out")
    return replace(architecture, **changes)


def _ours(path: Path) -> Architecture:
    try:
        return Architecture.from_dict(json.loads(path.read_bytes())["architecture"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the architecture of a checkpoint: {error!r}") from error


def _theirs(path: Path, ignore: list[str]) -> Architecture:
    from r1mega.policy.hugging_face.config_json import read_published

    return read_published(path, ignore=ignore).architecture


released.version = "1"  # type: ignore[attr-defined]


@hookimpl
def register_models(register: Register) -> None:
    register("released", released, config=ReleasedConfig)
