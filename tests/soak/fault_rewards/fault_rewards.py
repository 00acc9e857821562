"""Rewards for the fault tests: one that gives every text a different value, and one that breaks its contract in a chosen way."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import r1mega
from r1mega.types import RewardSample, Score

MARKS = "R1MEGA_SOAK_MARKS"  # a folder: while a worker scores, a file named by its process id is there


@dataclass(frozen=True)
class VarietyConfig:
    pause_s: float = 0.0  # of each call, so that a kill can hit the scoring


class Variety:
    """The share of different characters: never the same for a whole group, even of an untrained model."""

    version = "1"

    def __init__(self, config: VarietyConfig) -> None:
        self.pause_s = config.pause_s

    def score(self, samples: Sequence[RewardSample]) -> Sequence[Score]:
        mark = Path(os.environ[MARKS]) / str(os.getpid()) if MARKS in os.environ else None
        if mark:
            mark.touch()
        time.sleep(self.pause_s)
        scores = [Score(len(set(sample.completion)) / max(1, len(sample.completion))) for sample in samples]
        if mark:
            mark.unlink()
        return scores


@dataclass(frozen=True)
class FaultyConfig:
    how: str = "hang"  # hang, not_a_number, count, raise
    share: float = 1.0  # of the samples, chosen by their text


class Faulty:
    """Breaks the contract of a reward in the way its settings say."""

    version = "1"

    def __init__(self, config: FaultyConfig) -> None:
        self.config = config

    def score(self, samples: Sequence[RewardSample]) -> Sequence[Score]:
        scores = [Score(1.0) for _ in samples]
        hit = [k for k, sample in enumerate(samples) if sum(sample.completion.encode()) % 100 < 100 * self.config.share]
        if not hit:
            return scores
        if self.config.how == "hang":
            time.sleep(10_000)
        elif self.config.how == "not_a_number":
            object.__setattr__(scores[hit[0]], "value", float("nan"))  # past the check in its constructor
        elif self.config.how == "count":
            return scores[1:]
        else:
            raise RuntimeError("the reward model's server is not there")
        return scores


@r1mega.hookimpl
def register_rewards(register: Any) -> None:
    register("variety", Variety, config=VarietyConfig)
    register("faulty", Faulty, config=FaultyConfig)
