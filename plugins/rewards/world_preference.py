"""The tiny world's published preference rule as a reward term: for evaluation, never to train against."""

from __future__ import annotations

from collections.abc import Sequence

from r1mega import hookimpl
from r1mega.data.world.preferences import preference_parts
from r1mega.hookspecs import Register
from r1mega.types import RewardSample, Score


class WorldPreference:
    """How good an answer to a request of the tiny world is, from 0 to 1, by the rule that made its preference pairs."""

    version = "1"

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: RewardSample) -> Score:
        parts = preference_parts(sample.prompt, sample.completion)
        return Score(sum(parts.values()), parts, ", ".join(f"{name} {value:g}" for name, value in parts.items()))


@hookimpl
def register_rewards(register: Register) -> None:
    register("world_preference", WorldPreference)
