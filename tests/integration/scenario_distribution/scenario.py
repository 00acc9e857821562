"""An installed outside plugin for the tests of `rl`: general prompts, and a reward that is computed where the policy is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from r1mega import hookimpl
from r1mega.config import ClusterConfig, ParallelConfig
from r1mega.data.records import write_prompts
from r1mega.hookspecs import Register
from r1mega.recipe.context import StageContext
from r1mega.types import Prompt


@dataclass(frozen=True)
class GeneralConfig:
    count: int = 400
    seed: int = 0
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


class General:
    """Prompts of the domain `helpful` and, as their reward model, a number."""

    version = "1"
    inputs: ClassVar[Mapping[str, str]] = {}
    outputs: ClassVar[Mapping[str, str]] = {"prompts": "PromptSet", "model": "RewardModel"}

    def __init__(self, config: GeneralConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        write_prompts(context.output("prompts"), [Prompt(f"g{k}", f"{k}-", domain="helpful") for k in range(self.config.count)])
        context.output("model").mkdir(parents=True, exist_ok=True)
        (context.output("model") / "scale.txt").write_text("0.125\n")
        return {}


class Brevity:
    """Fewer tokens score more; `folder` holds how much a token costs."""

    version = "1"
    needs_scorer: ClassVar[bool] = True

    def __init__(self, *, folder: Path, policy: Any, tokenizer: Any) -> None:
        self._scale = float((folder / "scale.txt").read_text())
        self._ranks, self._tokenizer = policy.ranks, tokenizer

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        assert all(prompt.domain == "helpful" for prompt in prompts)
        self._ranks.barrier()  # a collective, as a reward model's forward is: it hangs unless every rank calls it
        return [-self._scale * len(self._tokenizer.encode(text)) for text in responses]


@hookimpl
def register_stages(register: Register) -> None:
    register("general_prompts", General, config=GeneralConfig)


@hookimpl
def register_rewards(register: Register) -> None:
    register("brevity", Brevity)


@hookimpl
def config_search_path() -> str:
    return "pkg://scenario_conf"
