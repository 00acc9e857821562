"""From scored groups to weighted training sequences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from r1mega import plugins
from r1mega.rollout.experience import build_samples, split_minibatches, weigh
from r1mega.types import Completion, EncodedPrompt, Prompt, RolloutGroup, ScoredGroup


def scored(lengths: list[int], rewards: list[float], valid: list[bool] | None = None) -> ScoredGroup:
    prompt = EncodedPrompt(Prompt("1+2", "1+2="), "1+2=\n", (5, 6, 7))
    completions = tuple(Completion(f"1+2@0#{k}", tuple(range(10, 10 + n)), tuple(-0.1 * (i + 1) for i in range(n)), "", "stop", 0)
                        for k, n in enumerate(lengths))
    return ScoredGroup(RolloutGroup(prompt, completions), tuple(rewards), {}, tuple(valid or [True] * len(lengths)))


def test_a_sample_covers_prompt_and_completion_and_only_the_completion_has_weight() -> None:
    ((sample,),) = build_samples([scored([4], [1.0])], [np.array([0.5], np.float32)])
    assert sample is not None
    sequence = sample.sequence
    assert sequence.tokens.tolist() == [5, 6, 7, 10, 11, 12, 13]
    assert sequence.weights.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert sequence.advantages is not None
    assert sequence.advantages.tolist() == [0, 0, 0, 0.5, 0.5, 0.5, 0.5]
    assert sequence.behaviour_logprobs is not None
    np.testing.assert_allclose(sequence.behaviour_logprobs, [0, 0, 0, -0.1, -0.2, -0.3, -0.4], rtol=1e-6)


def test_a_failed_reward_is_no_sample_and_a_nan_advantage_contributes_nothing() -> None:
    row = build_samples([scored([2, 2, 2], [1.0, 0.0, math.nan], [True, True, False])], [np.array([1.0, np.nan, np.nan], np.float32)])[0]
    assert row[2] is None
    assert row[0] is not None
    assert row[0].contributes
    assert row[1] is not None
    assert not row[1].contributes


@pytest.mark.parametrize(("algorithm", "expected"), [
    ("grpo", lambda lengths: 1 / np.repeat(lengths, lengths) / 3),  # 1/G sum 1/|o| sum; the third sequence counts and contributes 0
    ("dapo", lambda lengths: np.ones(sum(lengths)) / (sum(lengths) + 5)),
])
def test_weights_scaled_by_tokens_over_denominator_give_the_published_aggregation(algorithm: str, expected) -> None:  # type: ignore[no-untyped-def]
    plugin = plugins.load().registry.get("algorithms", algorithm)
    assert plugin.config is not None
    config = plugin.config(max_tokens=8192)
    instance = plugin.factory(config)
    samples = [s for s in build_samples([scored([2, 4, 5], [1.0, 0.0, 0.5])], [np.array([1.0, -1.0, np.nan], np.float32)])[0] if s is not None]
    tokens = sum(s.completion_length for s in samples if s.contributes)
    denominator = instance.denominator([s.completion_length for s in samples])
    sequences = weigh(samples, instance, tokens / denominator)
    weights = np.concatenate([s.weights[s.weights > 0] for s in sequences]) / tokens  # training divides by the count of loss tokens
    np.testing.assert_allclose(weights, expected([2, 4]), rtol=1e-6)


def test_minibatches_are_an_even_random_split_that_does_not_depend_on_replicas() -> None:
    everything = split_minibatches(range(64), 64, 4, seed=3, rollout=7)
    assert sorted(everything) == sorted([0, 1, 2, 3] * 16)
    assert split_minibatches(range(1, 64, 2), 64, 4, seed=3, rollout=7) == everything[1::2]
    assert split_minibatches(range(64), 64, 4, seed=3, rollout=8) != everything
    assert split_minibatches(range(64), 64, 1, seed=3, rollout=8) == [0] * 64
