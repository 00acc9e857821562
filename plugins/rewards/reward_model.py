"""Scores responses with a trained reward model that is connected to the stage (R1_RECIPE section 2.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from r1mega import hookimpl
from r1mega.errors import ConfigError
from r1mega.hookspecs import Register, Tokenizer
from r1mega.rewards.model import RewardModelScorer
from r1mega.types import Prompt

if TYPE_CHECKING:
    from r1mega.policy.policy import Policy


@dataclass(frozen=True)
class RewardModelTermConfig:
    """How much is scored at once."""

    micro_batch_tokens: int = 65536  # of one packed micro-batch


class RewardModelTerm:
    """A number between 0 and 1 from the reward model connected to the stage's input of the term's name (helpful, safety)."""

    version: ClassVar[str] = "1"
    needs_scorer: ClassVar[bool] = True

    def __init__(self, config: RewardModelTermConfig, *, folder: Path | None, policy: Policy, tokenizer: Tokenizer) -> None:
        if folder is None:
            raise ConfigError("a reward term with plugin 'reward_model' needs a reward model: connect the stage's input of the term's name "
                              "(helpful or safety) to the output of a reward_model stage")
        self._scorer = RewardModelScorer(folder, policy=policy, tokenizer=tokenizer, micro_batch_tokens=config.micro_batch_tokens)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """See `hookspecs.ResponseScorer`."""
        return self._scorer.score(prompts, responses)


@hookimpl
def register_rewards(register: Register) -> None:
    register("reward_model", RewardModelTerm, config=RewardModelTermConfig)
