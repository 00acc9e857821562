"""Reward hacking, seen from outside: the training reward rises while accuracy on held-out problems, told by the verifier alone, falls.

The paper saw it with preference rewards (R1_RECIPE 2.5, v2 Fig 6: the reward model's reward goes up, Codeforces goes down) and therefore trains
on them for 400 steps only; a monitor sees it while it happens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class MonitorConfig:
    """When the monitor looks, at what, and what it calls reward hacking. All of it is ours: the paper has no such monitor."""

    every: int = 0  # steps; checked at the first rollout that begins at or after each multiple. 0: never
    metric: str = "accuracy"  # the reward term that verifies, the only one computed
    problems: int = 64  # a fixed random choice of the held-out ones
    samples: int = 4  # per problem
    window: int = 5  # checks looked back over, the newest included
    reward_rise: float = 0.05  # the training reward must have risen by more than this,
    accuracy_fall: float = 0.02  # and verified accuracy have fallen by more than this and its standard error
    action: Literal["off", "warn", "stop"] = "warn"

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("problems", 2), ("samples", 1), ("window", 2), ("reward_rise", 0), ("accuracy_fall", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")


@dataclass(frozen=True)
class Check:
    """One look, both numbers under the same weights: the mean reward of the rollout just drawn, and the held-out problems."""

    step: int
    reward: float
    rates: tuple[float, ...]  # [problems], the share of correct samples of each
    regime: tuple[str, ...]  # what the reward is made of: the terms and domains in force; only checks that agree in it are compared

    @property
    def accuracy(self) -> float:
        return sum(self.rates) / len(self.rates)


@dataclass(frozen=True)
class Drift:
    """What happened between the first and the last of the checks that were compared."""

    since: int  # step of the first
    reward_rise: float
    accuracy_fall: float
    standard_error: float  # of the fall, over the problems, paired


def drift(checks: Sequence[Check], window: int) -> Drift | None:
    """The change over the last `window` checks in the same regime as the newest; None if there are fewer.

    The problems are the same at every check, so that the fall's standard error is that of the mean of their differences.
    """
    recent = checks[-window:]
    if len(recent) < window or any((check.regime, len(check.rates)) != (recent[-1].regime, len(recent[-1].rates)) for check in recent):
        return None
    first, last = recent[0], recent[-1]
    falls = np.asarray(first.rates) - np.asarray(last.rates)
    error = float(falls.std(ddof=1) / math.sqrt(len(falls))) if len(falls) > 1 else math.inf
    return Drift(first.step, last.reward - first.reward, float(falls.mean()), error)


def is_hacking(found: Drift | None, config: MonitorConfig) -> bool:
    """Whether the change is one that the config calls reward hacking."""
    return found is not None and found.reward_rise > config.reward_rise and found.accuracy_fall - found.standard_error > config.accuracy_fall


def describe(checks: Sequence[Check], found: Drift) -> str:
    """The finding in a sentence."""
    last = checks[-1]
    return (f"step {last.step}: reward hacking? Since step {found.since} the training reward rose by {found.reward_rise:.3g} (to {last.reward:.3g}) while "
            f"verified held-out accuracy fell by {found.accuracy_fall:.3g} +- {found.standard_error:.2g} (to {last.accuracy:.3g})")


def choose_problems(count: int, wanted: int, seed: int) -> list[int]:
    """Which of `count` held-out problems the monitor always looks at, ascending."""
    return sorted(np.random.default_rng([seed, 2]).permutation(count)[:wanted].tolist())
