"""The clipped policy-gradient loss of GRPO and its kin on packed tokens: sums, never means. Needs no torch import: tensor methods only.

Everything per token is a 1-D tensor [T], float32 or float64, aligned with `MicroBatch.labels`. Tokens of weight 0 (prompt, padding, masked
samples) are replaced before any arithmetic, so whatever stands there, infinities and NaN included, reaches neither the loss nor a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from r1mega.algo.kl import KLEstimator, kl_estimate

if TYPE_CHECKING:
    import torch

    from r1mega.types import MicroBatch

RatioLevel = Literal["token", "sequence"]


def clipped_surrogate(
    log_ratio: torch.Tensor, advantages: torch.Tensor, *, clip_ratio_low: float, clip_ratio_high: float, dual_clip: float | None = None
) -> torch.Tensor:
    """PPO's `min(r A, clip(r, 1 - low, 1 + high) A)` with r = exp(`log_ratio`), per token [T]; to be maximised.

    Written as `min(r, 1 + high) A` for A >= 0 and `max(r, 1 - low) A` for A < 0, which is equal, and clipped before the exponential, which is
    exact in value and gradient and cannot overflow for A >= 0. `clip_ratio_low` >= 1 never binds (R1's 10). For A < 0 the objective has no
    lower bound, and none is invented here; `dual_clip` (> 1) sets one, `max(r A, dual_clip A)` (dual-clip PPO, arXiv 1912.09729).
    """
    lower = math.log1p(-clip_ratio_low) if clip_ratio_low < 1 else -math.inf
    upper_when_worse = math.log(dual_clip) if dual_clip is not None else math.inf
    better = log_ratio.clamp(max=math.log1p(clip_ratio_high))
    worse = log_ratio.clamp(min=lower, max=upper_when_worse)
    return better.where(advantages >= 0, worse).exp() * advantages


def sequence_log_ratio(log_ratio: torch.Tensor, mask: torch.Tensor, lengths: Sequence[int], sequence_index: torch.Tensor) -> torch.Tensor:
    """GSPO's log of the length-normalised sequence ratio, at each of the sequence's tokens [T] (arXiv 2507.18071, Eq. 7).

    The value is the mean of `log_ratio` (0 where `mask` is false) over the sequence's loss tokens; the gradient goes straight through to the
    token's own log-ratio, as in GSPO-token (Eq. 14). For an advantage that is constant over the sequence this is the gradient of Eq. 5, and
    the means need no gradient of their own. A sequence must lie whole within the micro-batch. Summed sequence by sequence: a scatter-add on a
    GPU is not repeatable.
    """
    means = log_ratio.new_zeros(len(lengths))
    tokens = log_ratio.detach()
    start = 0
    for index, length in enumerate(lengths):
        own = slice(start, start + length)
        means[index] = tokens[own].sum() / mask[own].sum().clamp(min=1)
        start += length
    return means[sequence_index] + (log_ratio - tokens)


def policy_loss(
    logprobs: torch.Tensor,
    entropy: torch.Tensor | None,
    batch: MicroBatch,
    *,
    clip_ratio_low: float,
    clip_ratio_high: float,
    dual_clip: float | None = None,
    ratio_level: RatioLevel = "token",
    kl_coefficient: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    entropy_coefficient: float = 0.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The weighted loss sum over a micro-batch (scalar), and metric sums over its loss tokens (scalars, detached).

    `logprobs`, `entropy` [T]: the policy's, of `batch.labels`. Per token: `-surrogate + kl_coefficient * KL(policy || reference) -
    entropy_coefficient * entropy`, times `batch.weights`, which hold the aggregation (see `algo.aggregation`). Without `batch.old_logprobs` the
    update is on-policy: the ratio is 1 and carries the gradient.

    Metrics, to be divided by `tokens` after summing: `ratio`, `approx_kl` (KL of old to new policy), `clip_fraction_low`, `clip_fraction_high`,
    `kl` if the batch has reference log-probs, `entropy` if given. Raises ValueError if a coefficient needs a field the batch does not have.
    """
    if batch.advantages is None:
        raise ValueError("the policy loss needs batch.advantages")
    masked = batch.weights <= 0
    advantages = batch.advantages.masked_fill(masked, 0.0)
    old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
    log_ratio = (logprobs - old).masked_fill(masked, 0.0)
    metrics = {"tokens": (~masked).sum().to(logprobs.dtype), "approx_kl": kl_estimate(log_ratio.detach()).sum()}
    if ratio_level == "sequence":
        log_ratio = sequence_log_ratio(log_ratio, ~masked, batch.lengths, batch.sequence_index)
    loss = -clipped_surrogate(log_ratio, advantages, clip_ratio_low=clip_ratio_low, clip_ratio_high=clip_ratio_high, dual_clip=dual_clip)
    metrics |= _ratio_metrics(log_ratio.detach(), advantages, masked, clip_ratio_low, clip_ratio_high)
    if batch.ref_logprobs is not None:
        kl = kl_estimate((batch.ref_logprobs - logprobs).masked_fill(masked, 0.0), kl_estimator)
        loss = loss + kl_coefficient * kl
        metrics["kl"] = kl.detach().sum()
    elif kl_coefficient:
        raise ValueError(f"kl_coefficient {kl_coefficient} needs batch.ref_logprobs")
    if entropy is not None:
        entropy = entropy.masked_fill(masked, 0.0)
        loss = loss - entropy_coefficient * entropy
        metrics["entropy"] = entropy.detach().sum()
    elif entropy_coefficient:
        raise ValueError(f"entropy_coefficient {entropy_coefficient} needs the entropy of every token")
    return (loss * batch.weights).sum(), metrics


def _ratio_metrics(
    log_ratio: torch.Tensor, advantages: torch.Tensor, masked: torch.Tensor, clip_ratio_low: float, clip_ratio_high: float
) -> dict[str, torch.Tensor]:
    """Sums over loss tokens of the ratio and of the tokens whose gradient a bound cuts off."""
    ratio = log_ratio.exp().masked_fill(masked, 0.0)
    low = (ratio < 1 - clip_ratio_low) & (advantages < 0)
    high = (ratio > 1 + clip_ratio_high) & (advantages > 0)
    return {"ratio": ratio.sum(), "clip_fraction_low": low.sum().to(ratio.dtype), "clip_fraction_high": high.sum().to(ratio.dtype)}
