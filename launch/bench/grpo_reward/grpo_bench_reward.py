"""The rule reward of grpo_step.py, for both sides: the share of digits in the completion. Hardly ever equal within a group, so all groups train."""

from __future__ import annotations

from collections.abc import Sequence

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.types import RewardSample, Score


def digit_share(text: str) -> float:
    return sum(character.isdigit() for character in text) / max(1, len(text))


class DigitShare:
    """The share of digits in the completion."""

    version = "1"

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [Score(digit_share(sample.completion)) for sample in samples]


@hookimpl
def register_rewards(register: Register) -> None:
    register("digit_share", DigitShare)
