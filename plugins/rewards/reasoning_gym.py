"""A reasoning-gym problem, scored by its own family's scorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.rewards.answers import ExtractMode, check_mode, extract_answer
from r1mega.types import RewardSample, Score

Scorer = Callable[[str, Mapping[str, Any]], float]


@dataclass(frozen=True)
class ReasoningGymConfig:
    """Where the answer must stand, and how much of it is read."""

    extract: ExtractMode = "answer_tag"
    max_answer_chars: int = 10_000  # grids and programs are long; a longer answer scores 0

    def __post_init__(self) -> None:
        check_mode(self.extract)


class ReasoningGym:
    """The value of reasoning-gym's scorer for the problem's family, 0 where there is no answer.

    Needs `metadata` with `dataset` (the family's name) and `entry` (the problem as the family made it), as the task `reasoning_gym` gives.
    """

    version = "1"

    def __init__(self, config: ReasoningGymConfig) -> None:
        from reasoning_gym import get_score_answer_fn  # here, so that importing the plugin stays cheap

        self._config = config
        self._scorer_of: Callable[[str], Scorer] = get_score_answer_fn
        self._scorers: dict[str, Scorer] = {}

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: RewardSample) -> Score:
        try:
            dataset, entry = sample.metadata["dataset"], sample.metadata["entry"]
        except KeyError as error:
            raise ValueError(f"the sample's metadata has no {error}; the reward 'reasoning_gym' scores problems of the task 'reasoning_gym' "
                             f"only (prompt {sample.prompt[:80]!r})") from error
        found = extract_answer(sample.completion, self._config.extract)
        if found.answer is None:
            return Score(0.0, explanation=found.reason)
        if len(found.answer) > self._config.max_answer_chars:
            return Score(0.0, explanation=f"the answer has {len(found.answer)} characters, more than {self._config.max_answer_chars}")
        if dataset not in self._scorers:
            self._scorers[dataset] = self._scorer_of(dataset)
        return Score(float(self._scorers[dataset](found.answer, entry)))


@hookimpl
def register_rewards(register: Register) -> None:
    register("reasoning_gym", ReasoningGym, config=ReasoningGymConfig)
