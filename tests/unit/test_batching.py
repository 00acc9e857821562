"""Micro-batches: one worked example by hand, the documented invariants on random sequences, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r1mega.rollout.batching import OPTIONAL, make_microbatch, unpack
from r1mega.types import TrainSequence


def sequence(length: int, rng: np.random.Generator, *, optional: bool = True, name: str = "s") -> TrainSequence:
    fields = {field: rng.normal(size=length).astype(np.float32) for field in OPTIONAL} if optional else {}
    return TrainSequence(name, rng.integers(1, 1000, length), (rng.random(length) < 0.5).astype(np.float32), **fields)


def test_a_worked_example() -> None:
    one = TrainSequence("a", np.array([5, 6, 7]), np.array([0, 0, 1], np.float32), old_logprobs=np.array([0, -1, -2], np.float32))
    two = TrainSequence("b", np.array([8, 9]), np.array([0, 0.5], np.float32), old_logprobs=np.array([0, -3], np.float32))
    batch = make_microbatch([one, two], pad_multiple=8)
    assert batch.tokens.tolist() == [5, 6, 7, 8, 9, 0, 0, 0]
    assert batch.labels.tolist() == [6, 7, 0, 9, 0, 0, 0, 0]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert batch.weights.tolist() == [0, 1, 0, 0.5, 0, 0, 0, 0]
    assert batch.old_logprobs is not None
    assert batch.old_logprobs.tolist() == [-1, -2, 0, -3, 0, 0, 0, 0]
    assert batch.sequence_index.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert (batch.lengths, batch.num_sequences) == ((3, 2, 3), 2)
    assert batch.advantages is None
    assert [array.tolist() for array in unpack(batch.old_logprobs, batch)] == [[0, -1, -2], [0, -3]]


def test_no_padding_tail_when_the_row_is_already_a_multiple() -> None:
    rng = np.random.default_rng(0)
    batch = make_microbatch([sequence(3, rng), sequence(5, rng)], pad_multiple=4)
    assert (batch.lengths, batch.num_sequences, len(batch.tokens)) == ((3, 5), 2, 8)
    assert batch.sequence_index.max() == 1


@pytest.mark.parametrize("seed", range(20))
def test_every_field_is_aligned_to_its_prediction_and_comes_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    multiple = int(rng.choice([1, 2, 8, 64]))
    sequences = [sequence(int(rng.integers(1, 50)), rng) for _ in range(rng.integers(1, 9))]
    batch = make_microbatch(sequences, multiple)
    total = len(batch.tokens)
    assert total % multiple == 0
    assert sum(batch.lengths) == total < sum(map(len, sequences)) + multiple
    start = 0
    for index, given in enumerate(sequences):
        for t in range(len(given)):
            at = start + t
            assert (batch.tokens[at], batch.positions[at], batch.sequence_index[at]) == (given.tokens[t], t, index)
            last = t == len(given) - 1
            assert batch.labels[at] == (0 if last else given.tokens[t + 1])
            for name in ("weights", *OPTIONAL):
                assert getattr(batch, name)[at] == (0 if last else getattr(given, name)[t + 1]), name
        start += len(given)
    for name in ("tokens", "labels", "weights", *OPTIONAL):
        assert not getattr(batch, name)[start:].any(), f"padding has {name}"
    for name in OPTIONAL:
        for array, given in zip(unpack(getattr(batch, name), batch), sequences, strict=True):
            expected = getattr(given, name).copy()
            expected[0] = 0
            assert array.dtype == np.float32
            assert np.array_equal(array, expected)


def test_a_row_of_padding_alone_has_every_field_and_no_weight() -> None:
    batch = make_microbatch([], pad_multiple=16)
    assert (len(batch.tokens), batch.lengths, batch.num_sequences) == (16, (16,), 0)
    for name in ("weights", *OPTIONAL):
        assert getattr(batch, name).tolist() == [0.0] * 16
    assert unpack(torch.zeros(16), batch) == []


def test_unpack_keeps_float64_and_widens_bfloat16() -> None:
    batch = make_microbatch([sequence(4, np.random.default_rng(0))], 1)
    exact = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    assert unpack(exact, batch)[0].tolist() == [0.0, 0.1, 0.2, 0.3]
    assert unpack(exact.to(torch.bfloat16), batch)[0].dtype == np.float32


def test_a_micro_batch_does_not_share_memory_with_its_sequences() -> None:
    given = sequence(4, np.random.default_rng(0))
    batch = make_microbatch([given], 1)
    before = given.tokens.copy()
    batch.tokens.zero_()
    assert np.array_equal(given.tokens, before)


def test_mistakes_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="1 of 2 sequences of one micro-batch have no advantages, the first is 'bare'"):
        make_microbatch([sequence(3, rng), sequence(3, rng, optional=False, name="bare")], 1)
    with pytest.raises(ValueError, match="'void' has no tokens"):
        make_microbatch([sequence(0, rng, name="void")], 1)
    with pytest.raises(ValueError, match=r"values have shape \(3,\), the micro-batch \(4,\)"):
        unpack(torch.zeros(3), make_microbatch([sequence(4, rng)], 1))
