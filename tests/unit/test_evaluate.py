"""The units of an evaluation: cut the same on every replica, banked when they are whole, taken from the bank only if they are what is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from r1mega.config import RewardConfig, RewardTerm
from r1mega.rewards.pool import RewardPool
from r1mega.rollout.evaluate import Bank, evaluate_problems
from r1mega.types import Completion, EncodedPrompt, GenerationRequest, Prompt, SamplingParams

PROMPTS = [EncodedPrompt(Prompt(f"p{k}", f"{k}+1?", str(k + 1), "math"), f"User: {k}+1?", (7, k)) for k in range(5)]


@dataclasses.dataclass(frozen=True)
class Replica:
    """One of `dp_size` replicas; the others have what `others_lack` says and report no problems."""

    dp_rank: int = 0
    dp_size: int = 1
    others_lack: float = 0.0
    is_lead: bool = True

    def from_lead(self, value: Any) -> Any:
        return value

    def gather_replicas(self, value: Any) -> list[Any]:
        return [value]

    def max_over_ranks(self, value: float) -> float:
        return max(value, self.others_lack)


class Dies(Exception):
    """In place of SIGKILL."""


class Generator:
    """Answers that depend on the request's seed; dies in the middle of call `last`."""

    def __init__(self, last: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self.last = last

    def generate(self, requests: Sequence[GenerationRequest], on_finish: Callable[[Completion], Any]) -> None:
        for request in requests:
            answer = str(request.prompt_tokens[1] + 1 + request.seed % 2)
            on_finish(Completion(request.id, (request.seed % 1000,), (-0.5,), f"<think>so</think><answer>{answer}</answer>", "stop", 0))
            if len(self.calls) == self.last:
                raise Dies
        self.calls.append([request.id for request in requests])


@pytest.fixture(scope="module")
def pool() -> Any:
    with_accuracy = RewardPool.from_config(RewardConfig(terms={"accuracy": RewardTerm("accuracy")}, workers=1))
    yield with_accuracy
    with_accuracy.close()


def evaluated(pool: RewardPool, folder: Path, generator: Generator, *, samples: int = 3, unit: int = 6, ranks: Replica | None = None) -> Any:
    return evaluate_problems(PROMPTS, samples, generator=generator, pool=pool, ranks=ranks or Replica(), sampling=SamplingParams(max_tokens=4), seed=3,
                             metric="accuracy", bank=Bank(folder, unit))


def test_what_was_finished_is_not_made_again_and_the_end_is_the_same(pool: RewardPool, tmp_path: Path) -> None:
    whole, first, second = Generator(), Generator(last=2), Generator()
    expected = evaluated(pool, tmp_path / "a", whole)
    assert [len(call) for call in whole.calls] == [6, 6, 3]
    assert 0 < sum(result.rate for result in expected[0]) < 5, "all answers are right, or none: the comparison would say little"
    with pytest.raises(Dies):
        evaluated(pool, tmp_path / "b", first)
    pool.finish()  # what the dead call had submitted dies with its process
    assert evaluated(pool, tmp_path / "b", second) == expected
    assert second.calls == whole.calls[2:]
    third = Generator()
    assert evaluated(pool, tmp_path / "b", third) == expected
    assert not third.calls
    Bank(tmp_path / "b", 6).drop()
    assert not (tmp_path / "b").exists()


def test_a_unit_is_taken_only_if_it_is_what_is_asked_for(pool: RewardPool, tmp_path: Path) -> None:
    evaluated(pool, tmp_path, Generator())
    for change in ({"samples": 2}, {"unit": 9}, {"ranks": Replica(dp_size=2)}, {"ranks": Replica(others_lack=1.0)}):
        again = Generator()
        evaluated(pool, tmp_path, again, **change)  # type: ignore[arg-type]
        assert again.calls, f"{change}: units of another cut were taken"
        evaluated(pool, tmp_path, Generator())


def test_every_replica_makes_the_same_number_of_units(pool: RewardPool, tmp_path: Path) -> None:
    """Replicas that share experts generate together: one without problems left takes part with nothing."""
    calls = []
    for rank in range(3):
        generator = Generator()
        evaluated(pool, tmp_path, generator, unit=1, ranks=Replica(dp_rank=rank, dp_size=3))
        calls.append(generator.calls)
    assert [[len(call) for call in one] for one in calls] == [[3, 3], [3, 3], [3, 0]]
    assert sorted(sample for one in calls for call in one for sample in call) == [f"p{p}@{p}#{k}" for p in range(5) for k in range(3)]
