"""How good a policy is on held-out problems: k samples of each, scored; `metrics_eval` turns them into figures (R1_RECIPE section 6).

The samples are made and banked unit by unit, as a rollout's are: what a killed evaluation has finished is not made again.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from r1mega.errors import ConfigError, nearest
from r1mega.hookspecs import Generator
from r1mega.rewards.pool import RewardPool
from r1mega.rollout.collect import TermsOf, WorkItem, generate_and_score
from r1mega.rollout.ledger import Ledger
from r1mega.rollout.metrics_eval import ProblemResult, problem_result, summarise
from r1mega.types import EncodedPrompt, SamplingParams, ScoredGroup


class Replicas(Protocol):
    """What this module needs of `policy.ranks.Ranks`."""

    @property
    def dp_rank(self) -> int: ...

    @property
    def dp_size(self) -> int: ...

    @property
    def is_lead(self) -> bool: ...

    def from_lead(self, value: Any) -> Any: ...

    def gather_replicas(self, value: Any) -> list[Any]: ...

    def max_over_ranks(self, value: float) -> float: ...


@dataclass(frozen=True)
class Bank:
    """Where one evaluation keeps its finished units until its result is written, and how large they are.

    `before_rename` is called just before a unit gets its name (`StageContext.check_epoch`).
    """

    folder: Path  # of this evaluation alone
    samples_per_unit: int  # at most, and at least one problem's; per replica
    before_rename: Callable[[], None] = lambda: None

    def drop(self) -> None:
        """Remove every replica's units: the evaluation's result is safe. On one rank."""
        shutil.rmtree(self.folder, ignore_errors=True)


def evaluate(prompts: Sequence[EncodedPrompt], samples: int, *, generator: Generator, pool: RewardPool | None, ranks: Replicas, sampling: SamplingParams,
             seed: int, metric: str, bank: Bank) -> tuple[dict[str, Any], list[ScoredGroup]]:
    """Metrics over all prompts, the same on every rank, and this replica's groups. A collective; see `evaluate_problems`."""
    results, groups = evaluate_problems(prompts, samples, generator=generator, pool=pool, ranks=ranks, sampling=sampling, seed=seed, metric=metric, bank=bank)
    return summarise(results, seed), groups


def evaluate_problems(prompts: Sequence[EncodedPrompt], samples: int, *, generator: Generator, pool: RewardPool | None, ranks: Replicas,
                      sampling: SamplingParams, seed: int, metric: str, bank: Bank, terms_of: TermsOf | None = None,
                      ) -> tuple[list[ProblemResult], list[ScoredGroup]]:
    """Every problem's result in the prompts' order, the same on every rank, and this replica's groups. A collective.

    `metric` is the reward term that says whether a sample is correct (value 1). A sample whose reward failed counts nowhere, and is reported.
    A problem to whose domain the term does not apply is not verified; raises `ConfigError` if that is all of them. `terms_of` is as in
    `generate_and_score`. Units in `bank` are taken from there; whoever has written the result drops it.
    """
    ledger = Ledger(bank.folder, ranks.dp_rank, bank.before_rename)
    items = [WorkItem(index, prompt) for index, prompt in enumerate(prompts) if index % ranks.dp_size == ranks.dp_rank]
    size = max(1, bank.samples_per_unit // samples)
    largest_share = math.ceil(len(prompts) / ranks.dp_size)  # every replica has the same number of units, the last of which may be empty
    groups: list[ScoredGroup] = []
    for unit, first in enumerate(range(0, largest_share, size)):
        members = items[first: first + size]
        made: Sequence[ScoredGroup] | None = ledger.load_together(0, unit, members, samples, ranks)
        if made is None:
            made, _ = generate_and_score(members, samples, generator=generator, pool=pool, replica=ranks, sampling=sampling, seed=seed, step=-1,
                                         terms_of=terms_of)
            if ranks.is_lead:
                ledger.commit(0, unit, made)
        groups += made
    local = [(item.cursor, problem_result(group, metric)) for item, group in zip(items, groups, strict=True)]
    everything = sorted((pair for part in ranks.gather_replicas(local) for pair in part), key=lambda pair: pair[0])
    results = [result for _, result in everything]
    if results and not any(result.correct for result in results):
        known = sorted({name for result in results for name in result.terms})
        raise ConfigError(f"evaluation.metric={metric}: no such reward term applies to the held-out problems; those that do: {', '.join(known) or 'none'}."
                          f"{nearest(metric, known)}")
    return results, groups
