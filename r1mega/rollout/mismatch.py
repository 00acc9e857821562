"""How far the generator's log-probs are from the trainer's on the very tokens that were sampled.

The two run the same weights through different kernels; what is left between them is off-policy error nobody asked for. `mismatch` gives sums
per micro-batch, `merge` joins them over micro-batches and ranks, `summarise` turns them into figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from r1mega.algo.kl import kl_estimate

if TYPE_CHECKING:
    import torch

SUMS = ("count", "nonfinite", "abs_diff", "kl", "weight", "weight_square")  # reduced by addition
MAXIMA = ("abs_diff_max",)  # reduced by maximum


def mismatch(behaviour: torch.Tensor, trainer: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Statistics of one micro-batch: float64 scalars named in `SUMS` and `MAXIMA`.

    `behaviour`, `trainer` float [T]: log-probs of the sampled tokens by generator and trainer, at the same temperature; `mask` bool [T]:
    completion tokens. With w = exp(trainer - behaviour): `abs_diff` and `abs_diff_max` in nats, `kl` the k3 estimate of KL(generator ||
    trainer), `weight` and `weight_square` the first two moments of w. Tokens where either side is not finite are counted in `nonfinite` and
    in nothing else.
    """
    mask = mask.bool()
    difference = trainer.detach().double() - behaviour.detach().double()
    kept = mask & difference.isfinite()
    difference = difference.masked_fill(~kept, 0.0)
    weight = difference.exp().masked_fill(~kept, 0.0)
    distance = difference.abs()
    return {
        "count": kept.sum().double(),
        "nonfinite": (mask & ~kept).sum().double(),
        "abs_diff": distance.sum(),
        "abs_diff_max": distance.max() if distance.numel() else distance.sum(),
        "kl": kl_estimate(difference, "k3").sum(),
        "weight": weight.sum(),
        "weight_square": weight.square().sum(),
    }


def merge(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The statistics of both token sets together. Across ranks: all-reduce `SUMS` by addition and `MAXIMA` by maximum."""
    merged = {name: first[name] + second[name] for name in SUMS}
    return merged | {name: first[name].maximum(second[name]) for name in MAXIMA}


def summarise(sums: Mapping[str, torch.Tensor | float]) -> dict[str, float]:
    """Figures per token from merged statistics.

    `mean_abs_diff`, `max_abs_diff` (nats), `kl` (nats per token), `mean_weight` (1 for an exact match in expectation),
    `effective_sample_fraction` (Kish: (sum w)^2 / (n sum w^2), in (0, 1]), `tokens`, `nonfinite_tokens`. Without a finite token the figures
    are NaN: a guard must treat NaN, and any `nonfinite_tokens`, as a failure.
    """
    value = {name: float(sums[name]) for name in (*SUMS, *MAXIMA)}
    count = value["count"]

    def per_token(amount: float) -> float:
        return amount / count if count else math.nan

    squares = value["weight_square"]
    return {
        "mean_abs_diff": per_token(value["abs_diff"]),
        "max_abs_diff": value["abs_diff_max"] if count else math.nan,
        "kl": per_token(value["kl"]),
        "mean_weight": per_token(value["weight"]),
        "effective_sample_fraction": per_token(value["weight"] ** 2 / squares) if squares else math.nan,
        "tokens": count,
        "nonfinite_tokens": value["nonfinite"],
    }
