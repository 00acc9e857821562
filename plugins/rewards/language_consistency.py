"""Whether a completion reasons in the language it was asked in: the language-consistency reward of R1's first RL stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r1mega import hookimpl
from r1mega.data.chat import split_response
from r1mega.data.language import DEFAULT, LanguageDetector, language_share
from r1mega.hookspecs import Register
from r1mega.types import RewardSample, Score


@dataclass(frozen=True)
class LanguageConsistencyConfig:
    """What the paper's 0/0 is worth: it does not say. The reasoning is cut out here: leave the term's `scope` as it is."""

    without_words: float = 1.0  # reasoning without a word of any language, such as formulas alone: nothing in it is mixed
    without_reasoning: float = 0.0  # no reasoning at all: leaving it out must not pay

    def __post_init__(self) -> None:
        for name in ("without_words", "without_reasoning"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be between 0 and 1")


class LanguageConsistency:
    """Num(Words_target) / Num(Words) of the reasoning, the target being the prompt's language (R1 paper v2, Eq. 7); in [0, 1].

    The paper adds it to the reward as it is: weight 1. Another detector is a reward of its own that passes it to this class.
    """

    version = "1"

    def __init__(self, config: LanguageConsistencyConfig, detector: LanguageDetector = DEFAULT) -> None:
        self._config, self._detector = config, detector

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: RewardSample) -> Score:
        reasoning, _ = split_response(sample.completion, starts_in_reasoning=sample.starts_in_reasoning)
        if not reasoning:
            return Score(self._config.without_reasoning, explanation="there is no reasoning")
        share = language_share(reasoning, sample.language, detector=self._detector, without_words=self._config.without_words)
        return Score(share, explanation="" if share == 1 else f"{share:.0%} of the reasoning's words are in '{sample.language}'")


@hookimpl
def register_rewards(register: Register) -> None:
    register("language_consistency", LanguageConsistency, config=LanguageConsistencyConfig)
