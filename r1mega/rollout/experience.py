"""From scored groups to sequences to train on: advantages, minibatches, aggregation weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from r1mega.hookspecs import Algorithm
from r1mega.types import Completion, EncodedPrompt, ScoredGroup, TrainSequence


@dataclass(frozen=True)
class Rollout:
    """A replica's share of a rollout."""

    groups: Sequence[ScoredGroup]
    advantages: Sequence[np.ndarray]  # float32 [G] of each group; NaN where a sample gives no gradient


@dataclass(frozen=True)
class Sample:
    """One completion with its advantage; `contributes` is false where it gives no gradient but still counts in the denominator."""

    sequence: TrainSequence  # weight 1 at completion tokens until `weigh`
    completion_length: int
    advantage: float
    contributes: bool


def build_samples(groups: Sequence[ScoredGroup], advantages: Sequence[np.ndarray]) -> list[list[Sample | None]]:
    """Per group and sample; None where the reward failed, which counts nowhere."""
    return [[_sample(scored.group.prompt, completion, float(advantage)) if valid else None
             for completion, advantage, valid in zip(scored.group.completions, values, scored.valid, strict=True)]
            for scored, values in zip(groups, advantages, strict=True)]


def _sample(prompt: EncodedPrompt, completion: Completion, advantage: float) -> Sample:
    before, made = len(prompt.tokens), len(completion.tokens)
    contributes = not np.isnan(advantage)
    padding = np.zeros(before, np.float32)
    sequence = TrainSequence(
        id=completion.id, tokens=np.array((*prompt.tokens, *completion.tokens), np.int64),
        weights=np.concatenate([padding, np.ones(made, np.float32)]),
        advantages=np.concatenate([padding, np.full(made, advantage if contributes else 0.0, np.float32)]),
        behaviour_logprobs=np.concatenate([padding, np.array(completion.logprobs, np.float32)]))
    return Sample(sequence, made, advantage, contributes)


def split_minibatches(places: Sequence[int], total: int, updates: int, seed: int, rollout: int) -> list[int]:
    """For samples at these places of the rollout (0 ... total - 1, over all replicas), which of `updates` minibatches each belongs to.

    A random split (paper v2 section 2.1) fixed by (seed, rollout): the same whatever the number of replicas.
    """
    order = np.random.default_rng([seed, rollout, 1]).permutation(total)
    return [int(order[place]) * updates // total for place in places]


def weigh(samples: Sequence[Sample], algorithm: Algorithm, scale: float) -> list[TrainSequence]:
    """The contributing sequences with the algorithm's aggregation weights times `scale` at their completion tokens.

    Training divides once by the global count of loss tokens; with `scale` = that count / the algorithm's denominator the result is the sum
    divided by the denominator.
    """
    kept = [sample for sample in samples if sample.contributes]
    weights = algorithm.weights([sample.completion_length for sample in kept])
    return [replace(sample.sequence, weights=sample.sequence.weights * np.float32(weight * scale))
            for sample, weight in zip(kept, weights, strict=True)]
