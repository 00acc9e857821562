"""DAPO: clip-higher, dynamic sampling, token-level loss and soft overlong punishment (arXiv 2503.14476)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from r1mega import hookimpl
from r1mega.algo.advantages import degenerate, soft_overlong_penalty
from r1mega.errors import ConfigError, nearest
from r1mega.hookspecs import Register
from r1mega.types import ScoredGroup

from .grpo import GRPO, GRPOConfig


@dataclass(frozen=True)
class DAPOConfig(GRPOConfig):
    """GRPO's knobs with DAPO's values, and its dynamic sampling and overlong handling (arXiv 2503.14476)."""

    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.28
    kl_coefficient: float = 0.0
    aggregation: Literal["sequence", "token", "dr_grpo"] = "token"
    dynamic_sampling: bool = True  # sample on until enough groups can rank their samples
    dynamic_sampling_part: str | None = None  # the reward term that must vary within a kept group; null: the sum of all
    overlong_penalty: float = 1.0  # scale of the punishment, in reward units; 0 turns it off
    overlong_buffer: int = 4096  # the last tokens before max_tokens, over which the punishment grows
    overlong_filtering: bool = False  # truncated completions give no gradient; their rewards stay in the group's statistics

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(0 <= self.overlong_penalty < math.inf, "overlong_penalty", "a finite number, at least 0")
        if self.overlong_penalty:
            self.check(self.max_tokens is not None, "max_tokens", "given with overlong_penalty above 0; or set overlong_penalty=0")
            self.check(1 <= self.overlong_buffer <= (self.max_tokens or 0), "overlong_buffer", f"from 1 to max_tokens ({self.max_tokens})")


class DAPO(GRPO):
    """Decoupled Clip and Dynamic Sampling Policy Optimization."""

    version: ClassVar[str] = "1"

    def __init__(self, config: DAPOConfig) -> None:
        super().__init__(config)
        self.dapo = config
        self.dynamic_sampling = config.dynamic_sampling

    def advantages(self, groups: Sequence[ScoredGroup]) -> Sequence[np.ndarray]:
        return [self._advantages(group) for group in groups]

    def _advantages(self, scored: ScoredGroup) -> np.ndarray:
        completions = scored.group.completions
        rewards = np.asarray(scored.rewards, dtype=np.float64)
        if self.dapo.overlong_penalty:
            assert self.dapo.max_tokens is not None  # checked by the config
            lengths = np.array([len(completion.tokens) for completion in completions])
            penalty = soft_overlong_penalty(lengths, max_tokens=self.dapo.max_tokens, buffer=self.dapo.overlong_buffer)
            rewards = rewards + self.dapo.overlong_penalty * penalty
        advantages = self.rank(scored, rewards)
        if self.dapo.overlong_filtering:
            advantages[[completion.finish_reason == "length" for completion in completions]] = np.nan
        return advantages

    def keep_group(self, scored: ScoredGroup) -> bool:
        """Whether dynamic sampling keeps the group: its rewards, before the overlong punishment, are not all equal (Eq. 11)."""
        part = self.dapo.dynamic_sampling_part
        if part is not None and part not in scored.parts:
            raise ConfigError(f"algorithm.dynamic_sampling_part={part}: no such reward term; there are {', '.join(sorted(scored.parts))}."
                              f"{nearest(part, scored.parts)}")
        values = scored.rewards if part is None else scored.parts[part]
        return degenerate(np.asarray(values, dtype=np.float64), np.asarray(scored.valid, dtype=bool)) is None


@hookimpl
def register_algorithms(register: Register) -> None:
    register("dapo", DAPO, config=DAPOConfig)
