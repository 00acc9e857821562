"""Whether the right option of a multiple-choice question was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.rewards.options import LETTERS, chosen_option
from r1mega.types import RewardSample, Score


class Choice:
    """1 if the chosen letter is the reference's, otherwise 0. Needs `metadata["options"]`, their number, as the task `choice` gives."""

    version = "1"

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [_one(sample) for sample in samples]


def _one(sample: RewardSample) -> Score:
    options = sample.metadata.get("options")
    if not isinstance(options, int) or not 2 <= options <= len(LETTERS) or sample.answer not in tuple(LETTERS[:options]):
        raise ValueError(f"the sample is no multiple-choice question (metadata 'options' {options!r}, reference {sample.answer!r}); the reward 'choice' "
                         f"scores problems of the task 'choice' (prompt {sample.prompt[:80]!r})")
    chosen = chosen_option(sample.completion, options)
    if chosen is None:
        return Score(0.0, explanation="no option, or more than one, was chosen")
    return Score(1.0) if chosen == sample.answer else Score(0.0, explanation=f"{chosen} is not {sample.answer}")


@hookimpl
def register_rewards(register: Register) -> None:
    register("choice", Choice)
