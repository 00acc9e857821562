"""A pass without gradients over the sequences of every replica: packed by length, results back in the order of the sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from r1mega.rollout.packing import plan
from r1mega.types import TrainSequence

if TYPE_CHECKING:
    from r1mega.policy.policy import Policy
    from r1mega.types import MicroBatch

Output = TypeVar("Output")
Value = TypeVar("Value")


def over_sequences(policy: Policy, sequences: Sequence[TrainSequence], micro_batch_tokens: int, forward: Callable[[list[MicroBatch]], Sequence[Output]],
                   split: Callable[[Output, MicroBatch], Sequence[Value]]) -> list[Value]:
    """What `split` takes for each of this replica's sequences out of `forward`'s output of its micro-batch, in order. A collective.

    Every replica calls it, also with no sequences, and all run as many micro-batches as the one with the most: the others add padding. A
    sequence longer than `micro_batch_tokens` has a micro-batch of its size.
    """
    from r1mega.rollout.batching import make_microbatch

    lengths = [len(sequence) for sequence in sequences]
    members = plan(lengths, None, max(micro_batch_tokens, *lengths), 1).microbatches[0] if lengths else ()
    count = int(policy.ranks.max_over_ranks(len(members)))
    batches = [make_microbatch([sequences[index] for index in indices], policy.pad_multiple) for indices in members]
    batches += [make_microbatch([], policy.pad_multiple) for _ in range(count - len(members))]
    found: dict[int, Value] = {}
    for batch, indices, output in zip(batches, members, forward(batches) if count else (), strict=False):
        found.update(zip(indices, split(output, batch), strict=True))
    return [found[index] for index in range(len(sequences))]
