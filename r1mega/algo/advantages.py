"""Group-relative advantages and reward shaping, in numpy. NaN marks a sample that gives no gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from r1mega.types import ScoredGroup

# Rewards of a group that differ by less than this (relative to their size, at least 1) differ by rounding alone.
_SAME_REWARD = 1e-9


def degenerate(rewards: np.ndarray, valid: np.ndarray) -> Literal["too_few_valid", "zero_variance"] | None:
    """Why a group cannot rank its samples, or None if it can. `rewards` float [G], `valid` bool [G].

    Raises ValueError if a valid sample's reward is not finite.
    """
    kept = rewards[valid]
    if not np.isfinite(kept).all():
        raise ValueError(f"a valid sample's reward must be finite, got {kept.tolist()}; a reward that failed is masked instead")
    if len(kept) < 2:
        return "too_few_valid"
    spread = float(kept.max() - kept.min())
    return "zero_variance" if spread <= _SAME_REWARD * max(1.0, float(np.abs(kept).max())) else None


def group_advantages(
    rewards: np.ndarray, valid: np.ndarray, *, normalize_std: bool = True, sample_std: bool = True, std_epsilon: float = 1e-6
) -> np.ndarray:
    """`(r_i - mean(r)) / (std(r) + epsilon)` over the group's valid samples (DeepSeekMath, arXiv 2402.03300, section 4.1.2; R1 Eq. 3).

    `rewards` float [G], `valid` bool [G]; returns float32 [G]. Invalid samples enter neither mean nor std and get NaN; a group with equal
    rewards or fewer than two valid samples is NaN throughout: it says nothing about which sample is better.

    `normalize_std=False` leaves only the mean (Dr. GRPO, arXiv 2503.20783: dividing by std favours too easy and too hard questions). RLOO's
    leave-one-out baseline is the same up to the constant G / (G - 1).
    `sample_std` divides the squares by G - 1, else by G. The papers do not say which; the default is what the open reproductions do
    (TRL, verl), so that published clip ranges and learning rates carry over. At G = 16 the two differ by 3%.
    """
    result = np.full(len(rewards), np.nan, dtype=np.float32)
    if degenerate(rewards, valid) is not None:
        return result
    kept = rewards[valid].astype(np.float64)
    advantages = kept - kept.mean()
    if normalize_std:
        advantages /= kept.std(ddof=1 if sample_std else 0) + std_epsilon
    result[valid] = advantages
    return result


def soft_overlong_penalty(lengths: np.ndarray, *, max_tokens: int, buffer: int) -> np.ndarray:
    """DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13), to be added to the rewards: float64 [G] in [-1, 0].

    `lengths` int [G], completion tokens. 0 up to `max_tokens - buffer`, then falling linearly to -1 at `max_tokens`; `buffer` at least 1.
    Sized for the paper's rewards of -1 and 1; scale it for others.
    """
    excess = lengths.astype(np.float64) - (max_tokens - buffer)
    return -np.clip(excess / buffer, 0.0, 1.0)


def count_outcomes(groups: Sequence[ScoredGroup], advantages: Sequence[np.ndarray]) -> dict[str, int]:
    """How many groups and samples give a gradient, and why the others do not. Counts are additive over steps and replicas.

    `advantages` is what `Algorithm.advantages(groups)` returned. Groups: trained, zero_variance, too_few_valid, or filtered (the algorithm
    left out every sample of a group that could rank them). Samples: trained, failed (reward failed), filtered (left out of a trained group),
    or in a group that is not trained.
    """
    counts: Counter[str] = Counter({f"groups_{name}": 0 for name in ("trained", "zero_variance", "too_few_valid", "filtered")})
    counts.update({f"samples_{name}": 0 for name in ("trained", "failed", "filtered", "in_untrained_groups")})
    for group, values in zip(groups, advantages, strict=True):
        valid, trained = np.asarray(group.valid, dtype=bool), ~np.isnan(values)
        counts["samples_trained"] += int(trained.sum())
        counts["samples_failed"] += int((~valid).sum())
        left_out = int((valid & ~trained).sum())
        if trained.any():
            counts["groups_trained"] += 1
            counts["samples_filtered"] += left_out
        else:
            counts[f"groups_{degenerate(np.asarray(group.rewards), valid) or 'filtered'}"] += 1
            counts["samples_in_untrained_groups"] += left_out
    return {"groups": len(groups), "samples": sum(len(values) for values in advantages), **counts}
