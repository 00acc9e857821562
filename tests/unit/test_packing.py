"""The packing planner: validity, fill against the pigeonhole bound, moves, speed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest

from r1mega.rollout.packing import PackingPlan, plan

BIN = 32768
REPLICAS = (1, 2, 4, 8, 16, 32, 64)


def lognormal(count: int, seed: int) -> list[int]:
    drawn = np.exp(np.random.default_rng(seed).normal(np.log(2000), 1.0, count)).astype(int)
    return np.clip(drawn, 1, BIN).tolist()


def bound(total: int, bin_size: int) -> int:
    """No packing uses fewer bins than this."""
    return -(-total // bin_size)


def check_valid(made: PackingPlan, lengths: Sequence[int], replicas: int, multiple: int = 1) -> None:
    assert len(made.microbatches) == replicas
    assert len({len(bins) for bins in made.microbatches}) == 1, "replicas have different micro-batch counts"
    assert made.microbatches_per_replica % multiple == 0
    members = [i for bins in made.microbatches for bin_ in bins for i in bin_]
    assert sorted(members) == list(range(len(lengths))), "a sequence is lost or doubled"
    for bins in made.microbatches:
        for bin_ in bins:
            assert sum(lengths[i] for i in bin_) <= made.bin_size
            assert list(bin_) == sorted(bin_)


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("owned", [False, True])
def test_a_large_batch_is_at_least_95_percent_full(replicas: int, owned: bool) -> None:
    lengths = lognormal(8192, seed=0)
    owners = [i // 16 % replicas for i in range(8192)] if owned else None
    began = time.process_time()
    made = plan(lengths, owners, BIN, replicas)
    seconds = time.process_time() - began
    check_valid(made, lengths, replicas)
    least = bound(sum(lengths), BIN)
    assert least <= made.bins <= -(-(least + 1) // replicas) * replicas, "more than one bin above the pigeonhole bound, before equalising"
    assert made.fill >= 0.95
    assert made.fill == sum(lengths) / (made.bins * BIN)
    assert seconds < 0.5


@pytest.mark.parametrize("replicas", [1, 3, 7, 16, 64])
def test_a_small_batch_reaches_the_bound_for_its_replica_count(replicas: int) -> None:
    for seed in range(5):
        lengths = lognormal(512, seed)
        made = plan(lengths, None, BIN, replicas)
        check_valid(made, lengths, replicas)
        assert made.bins <= -(-(bound(sum(lengths), BIN) + 1) // replicas) * replicas


def fewest_moves(lengths: Sequence[int], owners: Sequence[int], replicas: int, capacity: int) -> int:
    """A lower bound: each replica over its capacity must shed at least this many of its longest sequences."""
    moves = 0
    for replica in range(replicas):
        mine = sorted((n for n, owner in zip(lengths, owners, strict=True) if owner == replica), reverse=True)
        excess = sum(mine) - capacity
        while excess > 0:
            excess -= mine.pop(0)
            moves += 1
    return moves


@pytest.mark.parametrize("replicas", [2, 8, 64])
def test_few_sequences_leave_their_owner(replicas: int) -> None:
    lengths = lognormal(8192, seed=1)
    owners = [i // 16 % replicas for i in range(8192)]
    made = plan(lengths, owners, BIN, replicas)
    away = sum(owners[i] != replica for replica, bins in enumerate(made.microbatches) for bin_ in bins for i in bin_)
    assert made.moved == away
    assert fewest_moves(lengths, owners, replicas, made.microbatches_per_replica * BIN) <= made.moved <= 100
    assert made.bins == plan(lengths, None, BIN, replicas).bins, "keeping owners cost a bin"


def test_nothing_moves_when_the_owners_already_balance() -> None:
    made = plan([10, 10, 10, 10], [0, 1, 0, 1], 20, 2)
    assert made.microbatches == (((0, 2),), ((1, 3),))
    assert (made.moved, made.fill) == (0, 1.0)


def test_everything_on_one_replica_is_spread_quickly() -> None:
    lengths = lognormal(8192, seed=2)
    began = time.process_time()
    made = plan(lengths, [0] * 8192, BIN, 64)
    assert time.process_time() - began < 0.5
    check_valid(made, lengths, 64)
    assert made.bins == plan(lengths, None, BIN, 64).bins


def test_a_perfect_fit_is_found_whoever_owns_what() -> None:
    """Pairs that fill a bin exactly leave no room to repair: every owner layout must still use the fewest bins."""
    rng = np.random.default_rng(3)
    short = rng.integers(100, 500, 64)
    lengths = np.concatenate([short, 1000 - short]).tolist()
    for seed in range(10):
        owners = np.random.default_rng(seed).integers(0, 4, 128).tolist()
        made = plan(lengths, owners, 1000, 4)
        check_valid(made, lengths, 4)
        assert made.fill == 1.0


def test_random_batches_are_packed_validly_and_the_same_every_time() -> None:
    rng = np.random.default_rng(4)
    for _ in range(150):
        count, replicas, multiple = int(rng.integers(0, 60)), int(rng.integers(1, 9)), int(rng.integers(1, 4))
        lengths = rng.integers(1, 65, count).tolist()
        owners = rng.integers(0, replicas, count).tolist() if rng.random() < 0.7 else None
        made = plan(lengths, owners, 64, replicas, multiple)
        check_valid(made, lengths, replicas, multiple)
        assert made == plan(lengths, owners, 64, replicas, multiple)
        filled = [sum(bool(b) for b in bins) for bins in made.microbatches]
        assert owners is not None or max(filled, default=0) - min(filled, default=0) <= max(1, made.microbatches_per_replica // 2)


def test_loads_are_even_without_owners() -> None:
    lengths = lognormal(8192, seed=5)
    made = plan(lengths, None, BIN, 16)
    loads = [sum(lengths[i] for bin_ in bins for i in bin_) for bins in made.microbatches]
    assert max(loads) / np.mean(loads) < 1.01


@pytest.mark.parametrize(("arguments", "message"), [
    (([5, 33], None, 32, 1), "sequence 1 has 33 tokens; a bin holds 1 to 32"),
    (([5, 0], None, 32, 1), "sequence 1 has 0 tokens"),
    (([5, 5], [0], 32, 1), "2 lengths but 1 owners"),
    (([5, 5], [0, 2], 32, 2), "sequence 1 is owned by replica 2; replicas are 0 to 1"),
    (([5], None, 0, 1), "bin_size, replicas"),
])
def test_impossible_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(*arguments)
