"""A toy plugin with stages, rollouts, tasks and a reward, and its conf folder: what the composition tests compose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from r1mega import hookimpl
from r1mega.config import ClusterConfig, ParallelConfig, Plugin, PrecisionConfig, RewardConfig
from r1mega.hookspecs import Register
from r1mega.plugins import Host
from r1mega.policy.architecture import Architecture, Rope


@dataclass(frozen=True)
class FastConfig:
    temperature: float = 1.0
    max_tokens: int = 16


@dataclass(frozen=True)
class SlowConfig:
    temperature: float = 1.0
    servers: int = 1


@dataclass(frozen=True)
class FileTaskConfig:
    path: str
    split: Literal["by_id", "by_file"] = "by_id"


@dataclass(frozen=True)
class LengthConfig:
    target: int = 10


@dataclass(frozen=True)
class TrainConfig:
    seed: int = 0
    steps: int = 10
    lr: float = 0.1
    rollout: Plugin = field(default_factory=dict)
    task: Plugin = field(default_factory=dict)
    reward: RewardConfig = field(default_factory=RewardConfig)


@dataclass(frozen=True)
class ReportConfig:
    title: str = "report"
    task: Plugin = field(default_factory=dict)


@dataclass(frozen=True)
class HeadsConfig:
    heads: int = 4


@dataclass(frozen=True)
class ModelStageConfig:
    model: Plugin = field(default_factory=dict)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def heads(config: HeadsConfig) -> Architecture:
    """A dense model with that many heads."""
    return Architecture(num_layers=4, hidden_size=64, ffn_hidden_size=64, num_attention_heads=config.heads, max_position_embeddings=64,
                        rope=Rope(rope_type="rope"))


class Train:
    """Toy training."""

    version = "1"
    inputs: ClassVar = {"policy": "Checkpoint?"}
    outputs: ClassVar = {"checkpoint": "Checkpoint"}


class Report:
    """Toy report."""

    version = "1"
    inputs: ClassVar = {"policy": "Checkpoint"}
    outputs: ClassVar = {"report": "Report"}


class Toy:
    def __init__(self, conf: Path | str) -> None:
        self.conf = conf if isinstance(conf, str) else f"file://{conf}"

    @hookimpl
    def register_stages(self, register: Register) -> None:
        register("toy_train", Train, config=TrainConfig)
        register("toy_report", Report, config=ReportConfig)
        register("toy_model", Train, config=ModelStageConfig)

    @hookimpl
    def register_rollouts(self, register: Register) -> None:
        register("fast", Train, config=FastConfig)
        register("slow", Train, config=SlowConfig)

    @hookimpl
    def register_tasks(self, register: Register) -> None:
        register("file", Train, config=FileTaskConfig)
        register("fixed", Train)

    @hookimpl
    def register_rewards(self, register: Register) -> None:
        register("length", Train, config=LengthConfig)
        register("plain", Train)

    @hookimpl
    def register_models(self, register: Register) -> None:
        register("heads", heads, config=HeadsConfig)

    @hookimpl
    def config_search_path(self) -> str:
        return self.conf


FILES = {
    "stage/toy_train": "# @package _global_\ndefaults: [/rollout: toy_fast, /task: toy_fixed, /reward: toy, _self_]\nsteps: 10\nlr: 1e-4\n",
    "stage/toy_report": "# @package _global_\ndefaults: [/task: toy_fixed, _self_]\n",
    "stage/toy_model": "# @package _global_\ndefaults: [/model: toy_heads, /parallel: single, /precision: fp32, /cluster: local]\n",
    "rollout/toy_fast": "name: fast\n",
    "rollout/toy_slow": "name: slow\nservers: 2\n",
    "task/toy_fixed": "name: fixed\n",
    "task/toy_file": "name: file\npath: ???\n",
    "model/toy_heads": "name: heads\nheads: 4\n",
    "reward/toy": "terms:\n  short: {name: length, weight: 2.0, settings: {target: 5}}\n  plain: {name: plain}\n",
    "recipe/toy": ("description: two trainings and a report\noverrides: [rollout.max_tokens=8, steps=7]\nstages:\n"
                   "  base: {stage: toy_train, overrides: [steps=3]}\n"
                   "  zero: {stage: toy_train, inputs: {policy: base.checkpoint}}\n"
                   "  report: {stage: toy_report, inputs: {policy: zero.checkpoint}}\n"),
    "recipe/toy_model": "stages:\n  base: {stage: toy_model}\n",
}


def write_conf(folder: Path, **changes: str) -> Path:
    """The toy conf folder; `changes` are files to replace, with `__` for the slash of their name."""
    for name, content in {**FILES, **{name.replace("__", "/"): text for name, text in changes.items()}}.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def toy_host(conf: Path | str) -> Host:
    host = Host()
    host.add(Toy(conf), "toy")
    host.finish()
    return host
