"""An installed outside plugin for the tests of `sft`: a stage that hands on a folder of samples as it is, and a list of starts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from r1mega import hookimpl
from r1mega.config import ClusterConfig, ParallelConfig
from r1mega.hookspecs import Register
from r1mega.recipe.context import StageContext


@dataclass(frozen=True)
class GivenConfig:
    seed: int = 0
    path: str = ""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


class Given:
    """Copies `path` to its output."""

    version = "1"
    inputs: ClassVar[Mapping[str, str]] = {}
    outputs: ClassVar[Mapping[str, str]] = {"samples": "SampleSet"}

    def __init__(self, config: GivenConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        shutil.copytree(self.config.path, context.output("samples"), dirs_exist_ok=True)
        return {}


@hookimpl
def register_stages(register: Register) -> None:
    register("given_samples", Given, config=GivenConfig)


@hookimpl
def config_search_path() -> str:
    return "pkg://given_samples_conf"


@hookimpl
def stage_start(run_dir: Path, stage: str, step: int) -> None:
    with (run_dir / "starts.txt").open("a") as file:
        file.write(f"{stage} {step}\n")
