"""The policy loss by itself: finite differences, invariance to packing, masking, extreme ratios, KL estimators."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from algo_batches import Sample, pack, random_samples

from r1mega.algo.kl import kl_estimate
from r1mega.algo.losses import clipped_surrogate, policy_loss

LENGTHS = (5, 1, 8, 3)
WEIGHTS = [0.2, 1.0, 0.125, 0.3]
CLIP_02: dict[str, Any] = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2}
VARIANTS: dict[str, dict[str, Any]] = {
    "r1": {"clip_ratio_low": 10.0, "clip_ratio_high": 10.0, "kl_coefficient": 0.001},
    "clip 0.2": {**CLIP_02, "kl_coefficient": 0.1},
    "clip higher": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28},
    "k1": {**CLIP_02, "kl_coefficient": 0.1, "kl_estimator": "k1"},
    "k2": {**CLIP_02, "kl_coefficient": 0.1, "kl_estimator": "k2"},
    "dual clip": {**CLIP_02, "dual_clip": 1.4},
    "entropy": {**CLIP_02, "entropy_coefficient": 0.05},
    "sequence ratio": {"clip_ratio_low": 0.05, "clip_ratio_high": 0.1, "ratio_level": "sequence", "kl_coefficient": 0.1},
}


def loss_of(samples: Sequence[Sample], weights: Sequence[float], padding: int = 0, **settings: Any) -> torch.Tensor:
    return policy_loss(*pack(samples, weights, padding=padding), **settings)[0]


def gradients(loss: torch.Tensor, samples: Sequence[Sample]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [sample.logprobs for sample in samples], allow_unused=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_is_the_finite_difference(variant: str) -> None:
    samples = random_samples(LENGTHS, spread=1.2, seed=1)

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        moved = [dataclasses.replace(s, logprobs=logprobs, entropy=entropy)
                 for s, logprobs, entropy in zip(samples, inputs[: len(samples)], inputs[len(samples):], strict=True)]
        return loss_of(moved, WEIGHTS, padding=2, **VARIANTS[variant])

    assert torch.autograd.gradcheck(loss, [s.logprobs for s in samples] + [s.entropy.clone().requires_grad_() for s in samples])


@pytest.mark.parametrize("variant", VARIANTS)
def test_packing_order_and_micro_batches_do_not_matter(variant: str) -> None:
    samples, settings = random_samples(LENGTHS, seed=2), VARIANTS[variant]
    whole = loss_of(samples, WEIGHTS, **settings)
    expected = gradients(whole, samples)
    for seed in range(5):
        order = list(range(len(samples)))
        random.Random(seed).shuffle(order)
        cut = seed % (len(order) - 1) + 1
        parts = sum(loss_of([samples[i] for i in piece], [WEIGHTS[i] for i in piece], padding=seed, **settings)
                    for piece in (order[:cut], order[cut:]))
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
        for actual, wanted in zip(gradients(parts, samples), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_sample_gives_exactly_no_gradient_and_no_metrics(variant: str) -> None:
    """A masked sample's advantage is NaN (as `advantages` leaves it) and its weight 0."""
    samples = random_samples(LENGTHS, seed=4)
    samples[2] = dataclasses.replace(samples[2], advantage=math.nan)
    weights = [0.2, 1.0, 0.0, 0.3]
    loss, metrics = policy_loss(*pack(samples, weights), **VARIANTS[variant])
    grads = gradients(loss, samples)
    assert not grads[2].any()
    assert all(grad.isfinite().all() for grad in grads)
    assert metrics["tokens"] == 5 + 1 + 3
    assert all(value.isfinite() and not value.requires_grad for value in metrics.values())


def test_micro_batch_without_any_loss_token_is_zero_with_a_graph() -> None:
    samples = random_samples(LENGTHS)
    loss, metrics = policy_loss(*pack(samples, [0.0] * 4, padding=4), **VARIANTS["sequence ratio"])
    assert loss == 0
    assert not any(grad.any() for grad in gradients(loss, samples))
    assert metrics["tokens"] == 0


@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
def test_on_policy_gradient_is_reinforce(ratio_level: str) -> None:
    """Without old log-probs the ratio is 1: gradient -w A at every token, no clipping, no KL between old and new."""
    samples = random_samples(LENGTHS)
    loss, metrics = policy_loss(*pack(samples, WEIGHTS, old=False, ref=False), **CLIP_02, ratio_level=ratio_level)
    for sample, weight, grad in zip(samples, WEIGHTS, gradients(loss, samples), strict=True):
        torch.testing.assert_close(grad, torch.full_like(grad, -weight * sample.advantage))
    assert metrics["ratio"] == metrics["tokens"] == sum(LENGTHS)
    assert metrics["clip_fraction_low"] == metrics["clip_fraction_high"] == metrics["approx_kl"] == 0
    assert "kl" not in metrics


def test_surrogate_is_ppos_printed_formula() -> None:
    log_ratio = torch.linspace(-4, 4, 401, dtype=torch.float64)
    for low, high in ((0.2, 0.2), (0.2, 0.28), (10.0, 10.0), (3e-4, 4e-4), (1.0, 0.5)):
        for advantage in (-1.5, 0.0, 0.7):
            ratio, advantages = log_ratio.exp(), torch.full_like(log_ratio, advantage)
            printed = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
            torch.testing.assert_close(clipped_surrogate(log_ratio, advantages, clip_ratio_low=low, clip_ratio_high=high), printed)


def test_paper_epsilon_clips_above_11_only() -> None:
    ratios = torch.tensor([1e-6, 10.9, 11.1], dtype=torch.float64)
    for advantage, moves in ((1.0, [True, True, False]), (-1.0, [True, True, True])):
        log_ratio = ratios.log().requires_grad_()
        clipped_surrogate(log_ratio, torch.full_like(ratios, advantage), clip_ratio_low=10.0, clip_ratio_high=10.0).sum().backward()
        assert log_ratio.grad is not None
        assert (log_ratio.grad != 0).tolist() == moves


def test_extreme_ratios_stay_finite_where_a_bound_holds() -> None:
    """exp(1000) is infinite: `min(inf, 1.2)` is 1.2 but its plain gradient would be 0 * inf."""
    log_ratio = torch.tensor([1000.0, -1000.0, -1000.0, 1000.0], requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    value = clipped_surrogate(log_ratio, advantages, **CLIP_02, dual_clip=3.0)
    (gradient,) = torch.autograd.grad(value.sum(), log_ratio)
    torch.testing.assert_close(value.detach(), torch.tensor([1.2, 0.0, -0.8, -3.0]))
    assert gradient.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_entropy_bonus_lowers_the_loss_by_its_weighted_sum() -> None:
    samples = random_samples(LENGTHS)
    bonus = 0.05 * sum(weight * sample.entropy.sum() for weight, sample in zip(WEIGHTS, samples, strict=True))
    torch.testing.assert_close(loss_of(samples, WEIGHTS, **CLIP_02, entropy_coefficient=0.05), loss_of(samples, WEIGHTS, **CLIP_02) - bonus)


def test_missing_fields_are_named() -> None:
    logprobs, _, batch = pack(random_samples(LENGTHS), WEIGHTS, ref=False)
    with pytest.raises(ValueError, match="ref_logprobs"):
        policy_loss(logprobs, None, batch, **CLIP_02, kl_coefficient=0.1)
    with pytest.raises(ValueError, match="entropy"):
        policy_loss(logprobs, None, batch, **CLIP_02, entropy_coefficient=0.1)
    with pytest.raises(ValueError, match="advantages"):
        policy_loss(logprobs, None, dataclasses.replace(batch, advantages=None), **CLIP_02)


def test_kl_estimators_agree_with_torch_in_expectation() -> None:
    """The expectation over p is exact on a small vocabulary: k1 and k3 are unbiased, k2 is close for close policies."""
    generator = torch.Generator().manual_seed(0)
    p_logits = torch.randn(50, generator=generator, dtype=torch.float64)
    log_p = p_logits.log_softmax(0)
    log_q = (p_logits + 0.1 * torch.randn(50, generator=generator, dtype=torch.float64)).log_softmax(0)
    exact = torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)

    def expected(estimator: Any) -> torch.Tensor:
        return (log_p.exp() * kl_estimate(log_q - log_p, estimator)).sum()

    torch.testing.assert_close(expected("k1"), exact)
    torch.testing.assert_close(expected("k3"), exact)
    torch.testing.assert_close(expected("k2"), exact, rtol=0.1, atol=0)
    assert (kl_estimate(log_q - log_p, "k3") >= 0).all()
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(log_q, "k4")  # type: ignore[arg-type]


def test_k3_keeps_its_digits_in_float32() -> None:
    difference = torch.tensor([1e-3, -1e-3])
    exact = difference.double().exp() - 1 - difference.double()
    torch.testing.assert_close(kl_estimate(difference, "k3").double(), exact, rtol=5e-4, atol=0)
