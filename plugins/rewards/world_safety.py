"""The tiny world's published safety rule as a reward term: for labelling responses and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from r1mega import hookimpl
from r1mega.data.world.preferences import is_safe
from r1mega.hookspecs import Register
from r1mega.types import RewardSample, Score


class WorldSafety:
    """1 for a response to a request of the tiny world that is safe to give, else 0, by the rule that made its safety verdicts."""

    version = "1"

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [Score(float(is_safe(sample.prompt, sample.completion))) for sample in samples]


@hookimpl
def register_rewards(register: Register) -> None:
    register("world_safety", WorldSafety)
