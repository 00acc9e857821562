"""Drawing tokens: against torch.multinomial's distribution, and the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r1mega.policy.sampling import draw, uniforms

ROWS = 20_000


def _draw(logits: list[float], *, temperature: float = 1.0, top_p: float | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """ROWS tokens from one distribution, each row with a seed of its own."""
    uniform = torch.from_numpy(uniforms(np.arange(ROWS, dtype=np.uint64) + np.uint64(seed * ROWS), np.full(ROWS, 7)))
    rows = torch.tensor(logits).expand(ROWS, -1)
    tokens, logprobs = draw(rows, torch.full((ROWS,), temperature), None if top_p is None else torch.full((ROWS,), top_p), uniform)
    return tokens.numpy(), logprobs.numpy()


def _chi_square(first: np.ndarray, second: np.ndarray) -> float:
    """Of two samples of equal size, over their common support: distributed as chi-square with cells - 1 degrees of freedom when they agree."""
    total = first + second
    cells = total > 0
    return float(((first - second)[cells] ** 2 / total[cells]).sum())


@pytest.mark.parametrize(("temperature", "seed"), [(1.0, 0), (0.6, 1), (1.7, 2)])
def test_draws_as_multinomial_does(temperature: float, seed: int) -> None:
    logits = torch.linspace(-2, 1.5, 12)
    tokens, _ = _draw(logits.tolist(), temperature=temperature, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    reference = torch.multinomial(torch.softmax(logits / temperature, 0), ROWS, replacement=True, generator=generator).numpy()
    distance = _chi_square(np.bincount(tokens, minlength=12), np.bincount(reference, minlength=12))
    assert distance < 31.3, f"chi-square {distance:.1f} with 11 degrees of freedom (31.3 is its 0.1% point): not the softmax at temperature {temperature}"


def test_logprobs_are_those_of_the_tempered_distribution_before_top_p() -> None:
    logits = [0.3, -1.0, 2.0, 0.5]
    tokens, logprobs = _draw(logits, temperature=0.7, top_p=0.8)
    expected = torch.log_softmax(torch.tensor(logits) / 0.7, 0).numpy()[tokens]
    np.testing.assert_allclose(logprobs, expected, atol=1e-6)


@pytest.mark.parametrize(("top_p", "support"), [(0.4, {0}), (0.5, {0}), (0.51, {0, 2}), (0.85, {0, 2, 3}), (1.0, {0, 1, 2, 3})])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, support: set[int]) -> None:
    tokens, _ = _draw(np.log([0.5 + 1e-4, 0.1, 0.3 - 1e-4, 0.1]).tolist() if top_p == 0.5 else np.log([0.5, 0.08, 0.3, 0.12]).tolist(), top_p=top_p)
    assert set(tokens.tolist()) == support


def test_temperature_zero_takes_the_most_likely_token_with_its_logprob_at_temperature_one() -> None:
    tokens, logprobs = _draw([0.0, 3.0, 2.9], temperature=0.0)
    assert set(tokens.tolist()) == {1}
    np.testing.assert_allclose(logprobs, torch.log_softmax(torch.tensor([0.0, 3.0, 2.9]), 0)[1], atol=1e-6)


def test_tokens_of_probability_zero_are_never_drawn_at_either_end_of_the_unit_interval() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]] * 3)
    uniform = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    tokens, logprobs = draw(logits, torch.ones(3), None, uniform)
    assert tokens.tolist() == [1, 3, 3]
    assert logprobs.isfinite().all()


def test_randomness_depends_on_seed_and_position_alone() -> None:
    seeds, positions = np.array([1, 2, 2**63], np.uint64), np.array([4, 4, 9])
    values = uniforms(seeds, positions)
    np.testing.assert_array_equal(values[::-1], uniforms(seeds[::-1].copy(), positions[::-1].copy()))
    assert len({*values.tolist(), *uniforms(seeds, positions + 1).tolist()}) == 6
    many = uniforms(np.arange(ROWS, dtype=np.uint64), np.zeros(ROWS, np.int64))
    assert 0 <= many.min() < many.max() < 1
    assert abs(np.corrcoef(many[:-1], many[1:])[0, 1]) < 0.03, "neighbouring seeds give related numbers"
