"""Generator-to-trainer statistics: against exact sums, under merging, and with log-probs that are not numbers."""

from __future__ import annotations

import math

import pytest
import torch

from r1mega.rollout.mismatch import MAXIMA, SUMS, merge, mismatch, summarise


def pair(size: int = 400, noise: float = 0.05, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    behaviour = -torch.rand(size, generator=generator) - 0.1
    trainer = behaviour + noise * torch.randn(size, generator=generator)
    return behaviour, trainer, torch.rand(size, generator=generator) < 0.7


def test_figures_by_hand() -> None:
    """Weights 2 and 1/2: mean 1.25, effective sample size 2.5^2 / 4.25; the masked token does not count."""
    behaviour = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64)
    trainer = behaviour + torch.tensor([math.log(2), -math.log(2), 50.0], dtype=torch.float64)
    figures = summarise(mismatch(behaviour, trainer, torch.tensor([True, True, False])))
    assert figures == pytest.approx({
        "mean_abs_diff": math.log(2), "max_abs_diff": math.log(2), "kl": 0.25, "mean_weight": 1.25,
        "effective_sample_fraction": 2.5**2 / 4.25 / 2, "tokens": 2, "nonfinite_tokens": 0,
    })


def test_equal_log_probs_are_a_perfect_score() -> None:
    behaviour, _, mask = pair()
    figures = summarise(mismatch(behaviour, behaviour, mask))
    assert figures == {"mean_abs_diff": 0, "max_abs_diff": 0, "kl": 0, "mean_weight": 1, "effective_sample_fraction": 1,
                       "tokens": float(mask.sum()), "nonfinite_tokens": 0}


def test_merged_pieces_equal_the_whole() -> None:
    behaviour, trainer, mask = pair()
    whole = mismatch(behaviour, trainer, mask)
    pieces = [mismatch(b, t, m) for b, t, m in zip(behaviour.split(123), trainer.split(123), mask.split(123), strict=True)]
    merged = pieces[-1]
    for piece in pieces[:-1]:
        merged = merge(merged, piece)
    assert set(merged) == set(whole) == {*SUMS, *MAXIMA}
    for name, value in whole.items():
        torch.testing.assert_close(merged[name], value, rtol=1e-12, atol=1e-12)


def test_kl_is_that_of_generator_to_trainer() -> None:
    """With every token of a small vocabulary drawn in proportion to the generator, k3 is the exact KL(generator || trainer)."""
    generator_probs = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    trainer_probs = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    tokens = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    figures = summarise(mismatch(generator_probs.log()[tokens], trainer_probs.log()[tokens], torch.ones(10)))
    exact = torch.nn.functional.kl_div(trainer_probs.log(), generator_probs, reduction="sum")
    assert figures["kl"] == pytest.approx(float(exact))
    assert figures["mean_weight"] == pytest.approx(1.0)


def test_nonfinite_tokens_are_counted_and_spoil_nothing_else() -> None:
    behaviour, trainer, mask = pair(8)
    mask[:] = True
    spoilt = behaviour.clone()
    spoilt[2], spoilt[5] = -torch.inf, torch.nan
    figures = summarise(mismatch(spoilt, trainer, mask))
    keep = [0, 1, 3, 4, 6, 7]
    assert figures["nonfinite_tokens"] == 2
    assert {**figures, "nonfinite_tokens": 0} == pytest.approx(summarise(mismatch(behaviour[keep], trainer[keep], mask[keep])))


@pytest.mark.parametrize("size", [0, 4])
def test_no_token_gives_nan_not_a_pass(size: int) -> None:
    nothing = torch.zeros(size)
    figures = summarise(mismatch(nothing, nothing, nothing))
    assert figures["tokens"] == 0
    assert math.isnan(figures["mean_abs_diff"])
    assert math.isnan(figures["effective_sample_fraction"])
