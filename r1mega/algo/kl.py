"""Estimators of the KL divergence from log-probs of samples (Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(log_ratio: torch.Tensor, estimator: KLEstimator = "k3") -> torch.Tensor:
    """Per-token estimate of KL(p || q) in nats, from tokens drawn from p and `log_ratio` = log q - log p (any shape, kept).

    - k1 = -log_ratio: unbiased, can be negative. As a loss term its expected gradient is zero: good for watching, not for training.
    - k2 = log_ratio^2 / 2: biased, but its gradient is the reverse KL's when the tokens are the current policy's own.
    - k3 = q/p - 1 - log_ratio: unbiased and never negative; the one printed in the R1 papers (arXiv 2501.12948, Eq. 2).

    k3 is computed with `expm1`, which keeps its digits where the two policies nearly agree. The exponential is not clamped: k3 has no upper
    bound, and a clamp would silently switch off the pull towards the reference where it is needed most. It overflows float32 only if p gives a
    token that was sampled a log-prob 88 nats below q's.
    """
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    if estimator == "k3":
        return log_ratio.expm1() - log_ratio
    raise ValueError(f"unknown KL estimator {estimator!r}; one of k1, k2, k3")
