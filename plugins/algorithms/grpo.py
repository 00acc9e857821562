"""GRPO as DeepSeek-R1 publishes it: group-normalised advantages, clipped ratios, KL to the reference inside the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from r1mega import hookimpl
from r1mega.algo import aggregation
from r1mega.algo.advantages import group_advantages
from r1mega.algo.losses import RatioLevel, policy_loss
from r1mega.hookspecs import Register
from r1mega.types import ScoredGroup

if TYPE_CHECKING:
    import torch

    from r1mega.types import MicroBatch


@dataclass(frozen=True)
class GRPOConfig:
    """Every knob of the GRPO family; its kin change the defaults. The ratio may move in (1 - clip_ratio_low, 1 + clip_ratio_high)."""

    clip_ratio_low: float = 10.0
    clip_ratio_high: float = 10.0
    dual_clip: float | None = None  # upper bound of the ratio where the advantage is negative
    kl_coefficient: float = 0.001  # beta; 0 needs no reference policy
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    entropy_coefficient: float = 0.0  # bonus per nat
    aggregation: Literal["sequence", "token", "dr_grpo"] = "sequence"
    max_tokens: int | None = None  # the rollout's limit on completions; read by aggregation "dr_grpo" and by DAPO's overlong punishment
    normalize_std: bool = True  # divide advantages by the group's standard deviation
    sample_std: bool = True  # ... with G - 1 in its denominator
    std_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for key in ("clip_ratio_low", "clip_ratio_high", "kl_coefficient", "entropy_coefficient", "std_epsilon"):
            self.check(0 <= getattr(self, key) < math.inf, key, "a finite number, at least 0")
        self.check(self.dual_clip is None or self.dual_clip > 1, "dual_clip", "above 1, or null")
        self.check(self.max_tokens is None or self.max_tokens > 0, "max_tokens", "above 0, or null")
        self.check(self.aggregation != "dr_grpo" or self.max_tokens is not None, "max_tokens", "given with aggregation=dr_grpo")

    def check(self, holds: bool, key: str, expected: str) -> None:
        """Raise ValueError naming the key unless the condition holds; the config loader adds where the value came from."""
        if not holds:
            raise ValueError(f"{key}={getattr(self, key)}: must be {expected}")


class GRPO:
    """Group Relative Policy Optimization (DeepSeekMath Eq. 3; DeepSeek-R1 Eq. 1-3)."""

    version: ClassVar[str] = "1"
    ratio_level: ClassVar[RatioLevel] = "token"

    def __init__(self, config: GRPOConfig) -> None:
        self.config = config
        self.needs_reference = config.kl_coefficient > 0

    def advantages(self, groups: Sequence[ScoredGroup]) -> Sequence[np.ndarray]:
        return [self.rank(group, np.asarray(group.rewards, dtype=np.float64)) for group in groups]

    def rank(self, group: ScoredGroup, rewards: np.ndarray) -> np.ndarray:
        """Advantages [G] of one group under the given (perhaps shaped) rewards [G]."""
        config = self.config
        return group_advantages(rewards, np.asarray(group.valid, dtype=bool), normalize_std=config.normalize_std,
                                sample_std=config.sample_std, std_epsilon=config.std_epsilon)

    def weights(self, completion_lengths: Sequence[int]) -> Sequence[float]:
        return aggregation.token_weights(self.config.aggregation, completion_lengths, max_tokens=self.config.max_tokens)

    def denominator(self, completion_lengths: Sequence[int]) -> float:
        return aggregation.denominator(self.config.aggregation, completion_lengths)

    def loss(self, logprobs: torch.Tensor, entropy: torch.Tensor | None, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        config = self.config
        return policy_loss(
            logprobs, entropy, batch,
            clip_ratio_low=config.clip_ratio_low, clip_ratio_high=config.clip_ratio_high, dual_clip=config.dual_clip,
            ratio_level=self.ratio_level, kl_coefficient=config.kl_coefficient, kl_estimator=config.kl_estimator,
            entropy_coefficient=config.entropy_coefficient,
        )


@hookimpl
def register_algorithms(register: Register) -> None:
    register("grpo", GRPO, config=GRPOConfig)
