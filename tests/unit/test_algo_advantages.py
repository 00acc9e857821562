"""Advantages of one group, the soft overlong punishment, aggregation, and the counts of what gives no gradient."""

from __future__ import annotations

import numpy as np
import pytest

from r1mega.algo.advantages import count_outcomes, degenerate, group_advantages, soft_overlong_penalty
from r1mega.algo.aggregation import denominator, token_weights
from r1mega.types import Completion, EncodedPrompt, Prompt, RolloutGroup, ScoredGroup

ALL = np.ones(4, dtype=bool)


def scored(rewards: list[float], valid: list[bool]) -> ScoredGroup:
    completions = tuple(Completion(f"p#{i}", (1,), (0.0,), "x", "stop", 0) for i in range(len(rewards)))
    return ScoredGroup(RolloutGroup(EncodedPrompt(Prompt("p", "?"), "?", (1,)), completions), tuple(rewards), {}, tuple(valid))


def test_worked_example_in_both_standard_deviations() -> None:
    """Rewards 1, 0, 0, 0: mean 1/4, population std sqrt(3)/4, sample std 1/2."""
    rewards = np.array([1.0, 0.0, 0.0, 0.0])
    sample = group_advantages(rewards, ALL, std_epsilon=0.0)
    population = group_advantages(rewards, ALL, sample_std=False, std_epsilon=0.0)
    assert sample.dtype == np.float32
    np.testing.assert_allclose(sample, [1.5, -0.5, -0.5, -0.5], rtol=1e-6)
    np.testing.assert_allclose(population, np.array([3, -1, -1, -1]) / np.sqrt(3), rtol=1e-6)
    np.testing.assert_allclose(group_advantages(rewards, ALL, normalize_std=False), [0.75, -0.25, -0.25, -0.25])


def test_masked_samples_change_nothing_for_the_others() -> None:
    valid = np.array([True, False, True, True, False])
    with_masked = group_advantages(np.array([1.0, 99.0, 0.0, 2.0, np.nan]), valid)
    np.testing.assert_array_equal(with_masked[valid], group_advantages(np.array([1.0, 0.0, 2.0]), np.ones(3, dtype=bool)))
    assert np.isnan(with_masked[~valid]).all()


@pytest.mark.parametrize(("rewards", "valid", "reason"), [
    ([1.0, 1.0, 1.0, 1.0], [True] * 4, "zero_variance"),
    ([0.1 + 0.2, 0.3, 0.3, 0.3], [True] * 4, "zero_variance"),  # differ by rounding alone
    ([1.0, 0.0, 1.0, 1.0], [True, False, True, True], "zero_variance"),
    ([1.0, 0.0, 0.0, 0.0], [True, False, False, False], "too_few_valid"),
    ([1.0, 0.0, 0.0, 0.0], [False] * 4, "too_few_valid"),
    ([1.0], [True], "too_few_valid"),
    ([1.0, 0.0, 0.0, 0.0], [True] * 4, None),
    ([1.0, 1.001, 1.0, 1.0], [True] * 4, None),
])
@pytest.mark.parametrize("normalize_std", [True, False])
def test_groups_that_cannot_rank_are_nan(rewards: list[float], valid: list[bool], reason: str | None, normalize_std: bool) -> None:
    mask = np.array(valid)
    assert degenerate(np.array(rewards), mask) == reason
    assert np.isnan(group_advantages(np.array(rewards), mask, normalize_std=normalize_std)).all() == (reason is not None)


def test_a_valid_reward_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        group_advantages(np.array([1.0, np.nan, 0.0, 0.0]), ALL)


def test_counts_name_every_reason() -> None:
    groups = [
        scored([1, 0, 0, 0], [True, True, True, False]),  # trained, one failed, one filtered by the algorithm
        scored([1, 1, 1, 0], [True, True, True, False]),  # zero variance
        scored([1, 0, 0, 0], [True, False, False, False]),  # too few
        scored([1, 0, 0, 0], [True] * 4),  # the algorithm filtered all of it
    ]
    advantages = [np.array([0.7, np.nan, -0.7, np.nan]), *[np.full(4, np.nan)] * 3]
    assert count_outcomes(groups, advantages) == {
        "groups": 4, "groups_trained": 1, "groups_zero_variance": 1, "groups_too_few_valid": 1, "groups_filtered": 1,
        "samples": 16, "samples_trained": 2, "samples_failed": 5, "samples_filtered": 1, "samples_in_untrained_groups": 8,
    }


def test_overlong_punishment_with_the_papers_numbers() -> None:
    """DAPO: 16,384 tokens are free, 4,096 more are the buffer."""
    lengths = np.array([1, 16384, 16385, 18432, 20480, 20481])
    expected = [0, 0, -1 / 4096, -0.5, -1, -1]
    np.testing.assert_allclose(soft_overlong_penalty(lengths, max_tokens=20480, buffer=4096), expected)


def test_aggregations() -> None:
    lengths = [2, 8, 5]
    assert token_weights("sequence", lengths) == [0.5, 0.125, 0.2]
    assert token_weights("token", lengths) == [1.0, 1.0, 1.0]
    assert token_weights("dr_grpo", lengths, max_tokens=16) == [1 / 16] * 3
    assert [denominator(kind, lengths) for kind in ("sequence", "token", "dr_grpo")] == [3.0, 15.0, 3.0]
    assert denominator("token", []) == 0.0
    assert token_weights("sequence", []) == []


def test_aggregation_errors_say_what_is_missing() -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        token_weights("dr_grpo", [3])
    with pytest.raises(ValueError, match="at least one token"):
        token_weights("sequence", [3, 0])
    with pytest.raises(ValueError, match="unknown aggregation"):
        token_weights("mean", [3])  # type: ignore[arg-type]
