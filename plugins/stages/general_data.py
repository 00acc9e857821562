"""General (non-reasoning) data for the recipe: answered requests, requests to answer, and preferences about them, all from the task.

Rows that overlap with what the recipe measures on are left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from r1mega import hookimpl
from r1mega.config import ClusterConfig, ParallelConfig, Plugin, TemplateConfig
from r1mega.data.decontaminate import EVALUATION_INPUTS, DecontaminationConfig, EvaluationTask
from r1mega.data.records import write_preferences, write_prompts, write_samples
from r1mega.errors import ConfigError
from r1mega.hookspecs import Register
from r1mega.recipe.context import StageContext

from ._evaluations import Screen, evaluations_of, publish_screened
from ._setup import make

_NEEDED = ("general_samples", "general_prompts", "refusal_prompts", "preferences")


@dataclass(frozen=True)
class GeneralDataConfig:
    """How much of each, and of which side of the task's split."""

    seed: int = 0
    samples: int = 1000  # answered requests
    preferences: int = 1000  # preference pairs, and as many safety verdicts
    split: str = "train"  # or test: to measure a reward model on what it has not seen
    task: Plugin = field(default_factory=dict)
    template: TemplateConfig = field(default_factory=TemplateConfig)  # of the responses in preferences
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    evaluation_tasks: dict[str, EvaluationTask] = field(default_factory=dict)  # what rows may not overlap with; composition adds the recipe's

    def __post_init__(self) -> None:
        if self.samples < 1 or self.preferences < 2:
            raise ConfigError(f"samples={self.samples} must be at least 1 and preferences={self.preferences} at least 2")
        if self.split not in ("train", "test"):
            raise ConfigError(f"split must be train or test, got '{self.split}'")


class GeneralData:
    """General samples, prompts and preferences that the task generates; `refusals`: the prompts that must or must not be refused, for the reward `refusal`."""

    version: ClassVar[str] = "3"
    inputs: ClassVar[Mapping[str, str]] = dict.fromkeys(EVALUATION_INPUTS, "PromptSet?")
    outputs: ClassVar[Mapping[str, str]] = {"samples": "SampleSet", "prompts": "PromptSet", "refusals": "PromptSet", "preferences": "PreferenceSet"}

    def __init__(self, config: GeneralDataConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        config, task = self.config, make("tasks", self.config.task, seed=self.config.seed)
        if missing := [name for name in _NEEDED if not hasattr(task, name)]:
            raise ConfigError(f"task '{config.task.name}' has no {missing[0]}; choose a task with general data, such as tiny_world")  # type: ignore[attr-defined]
        evaluations = evaluations_of(config, context)
        screens = {name: Screen(name, evaluations) for name in ("samples", "prompts", "refusals", "pairs", "judged")}
        given_pairs, given_judged = task.preferences(config.preferences, config.seed, config.split, config.template.response)
        samples = screens["samples"].clean(task.general_samples(config.samples, config.seed, config.split))
        prompts = screens["prompts"].clean(task.general_prompts(config.split))
        refusals = screens["refusals"].clean(task.refusal_prompts(config.split))
        pairs, judged = screens["pairs"].clean(given_pairs), screens["judged"].clean(given_judged)
        counts = {"samples": len(samples), "prompts": len(prompts), "refusals": len(refusals), "pairs": len(pairs), "judged": len(judged)}

        def put(output: str, write: Callable[[Path], None], *tables: str) -> None:
            publish_screened(context, output, write, {name: counts[name] for name in tables}, [screens[name] for name in tables], config)

        if context.rank == 0:
            put("samples", lambda folder: write_samples(folder, samples), "samples")
            put("prompts", lambda folder: write_prompts(folder, prompts), "prompts")
            put("refusals", lambda folder: write_prompts(folder, refusals), "refusals")
            put("preferences", lambda folder: write_preferences(folder, pairs, judged), "pairs", "judged")
        if context.world_size > 1:
            _wait_for_all(config.cluster.timeout_minutes)
        dropped = {name: count for screen in screens.values() for name, count in screen.metrics.items()}
        return counts | dropped | {"safe_share": sum(row.safe for row in judged) / len(judged)}


def _wait_for_all(timeout_minutes: float) -> None:
    """No rank leaves before rank 0 has written. A collective."""
    from r1mega.policy.platform import get_platform, initialize_distributed

    initialize_distributed(get_platform(), timeout_minutes)
    import torch.distributed as dist

    dist.barrier()


@hookimpl
def register_stages(register: Register) -> None:
    register("general_data", GeneralData, config=GeneralDataConfig)
