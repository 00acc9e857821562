"""From per-token losses to the step's loss: a weight for each token, and one denominator for the whole step.

The step's loss is `sum(weight_t * loss_t) / denominator`. The denominator is counted over all sequences of the step (one optimizer update)
before training begins; being a count, it is additive over data-parallel replicas, so the result does not depend on how the sequences are cut
into micro-batches or spread over replicas.

Which sequences count: every one whose reward is valid. Samples that give no gradient (zero-variance group, filtered) count too and contribute
0, as in the published means over all G outputs. A caller divides by the *summed* denominator, and skips the update if that is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Aggregation = Literal["sequence", "token", "dr_grpo"]


def token_weights(aggregation: Aggregation, lengths: Sequence[int], *, max_tokens: int | None = None) -> list[float]:
    """The weight of each token of a completion; one number per entry of `lengths` (completion tokens, at least 1).

    - sequence: 1 / |o_i|, the mean over tokens, then over sequences (DeepSeekMath, arXiv 2402.03300, Eq. 3).
    - token: 1, every token of the step counts alike (DAPO, arXiv 2503.14476, Eq. 8).
    - dr_grpo: 1 / `max_tokens`, the generation budget: no reward for short wrong or discount for long wrong answers (arXiv 2503.20783,
      section 3.2).
    """
    if min(lengths, default=1) < 1:
        raise ValueError(f"a completion has at least one token, got lengths {list(lengths)}")
    if aggregation == "sequence":
        return [1.0 / length for length in lengths]
    if aggregation == "token":
        return [1.0] * len(lengths)
    if aggregation == "dr_grpo":
        if not max_tokens:
            raise ValueError("aggregation 'dr_grpo' needs max_tokens, the generation budget")
        return [1.0 / max_tokens] * len(lengths)
    raise ValueError(f"unknown aggregation {aggregation!r}; one of sequence, token, dr_grpo")


def denominator(aggregation: Aggregation, lengths: Sequence[int]) -> float:
    """What the weighted sum is divided by: the tokens for "token", else the sequences. `lengths`: completion tokens of every valid sequence."""
    return float(sum(lengths) if aggregation == "token" else len(lengths))
