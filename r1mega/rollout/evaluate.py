"""pass@1 over k samples with its interval, cons@k, lengths and format: how good a policy is on held-out problems (R1_RECIPE section 6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from r1mega.hookspecs import Generator
from r1mega.rewards.answers import extract_answer
from r1mega.rewards.pool import RewardPool
from r1mega.rollout.collect import WorkItem, generate_and_score
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


@dataclass(frozen=True)
class ProblemResult:
    """One problem's samples."""

    correct: tuple[bool, ...]  # [k]
    formatted: tuple[float, ...]  # [k], empty without a format reward
    lengths: tuple[int, ...]  # [k], tokens
    consensus: bool  # the majority answer is correct
    failed: int  # samples whose reward failed


def evaluate(prompts: Sequence[EncodedPrompt], samples: int, *, generator: Generator, pool: RewardPool | None, ranks: Replicas, sampling: SamplingParams,
             seed: int, metric: str) -> tuple[dict[str, Any], list[ScoredGroup]]:
    """Metrics over all prompts, the same on every rank, and this replica's groups. A collective.

    `metric` is the reward term that says whether a sample is correct (value 1). A sample whose reward failed counts as wrong, and is reported.
    """
    items = [WorkItem(index, prompt) for index, prompt in enumerate(prompts) if index % ranks.dp_size == ranks.dp_rank]
    groups, _ = generate_and_score(items, samples, generator=generator, pool=pool, replica=ranks, sampling=sampling, seed=seed, step=-1)
    local = [(item.cursor, _result(group, metric)) for item, group in zip(items, groups, strict=True)]
    everything = sorted((pair for part in ranks.gather_replicas(local) for pair in part), key=lambda pair: pair[0])
    return summarise([result for _, result in everything], seed), groups


def _result(scored: ScoredGroup, metric: str) -> ProblemResult:
    values = scored.parts[metric]
    correct = tuple(bool(valid and value >= 1.0) for valid, value in zip(scored.valid, values, strict=True))
    answers = [extract_answer(completion.text, "auto").answer or "" for completion in scored.group.completions]
    votes = Counter(answer for answer in answers if answer)
    winner = votes.most_common(1)[0][0] if votes else None
    return ProblemResult(
        correct=correct, formatted=tuple(value for value, valid in zip(scored.parts.get("format", ()), scored.valid, strict=False) if valid),
        lengths=tuple(len(completion.tokens) for completion in scored.group.completions),
        consensus=any(ok for ok, answer in zip(correct, answers, strict=True) if answer == winner) if winner else False,
        failed=sum(not valid for valid in scored.valid))


def summarise(results: Sequence[ProblemResult], seed: int, resamples: int = 1000) -> dict[str, Any]:
    """The published definitions: pass@1 = mean over problems of the share of correct samples; its interval resamples problems."""
    if not results:
        return {"problems": 0}
    rates = np.array([np.mean(result.correct) for result in results])
    draws = np.random.default_rng(seed).integers(0, len(rates), (resamples, len(rates)))
    low, high = np.percentile(rates[draws].mean(1), [2.5, 97.5])
    metrics: dict[str, Any] = {
        "problems": len(results), "samples_per_problem": len(results[0].correct), "pass_at_1": float(rates.mean()),
        "pass_at_1_ci95": [float(low), float(high)], "cons_at_k": float(np.mean([result.consensus for result in results])),
        "mean_length": float(np.mean([length for result in results for length in result.lengths])),
        "reward_failures": sum(result.failed for result in results)}
    formatted = [value for result in results for value in result.formatted]
    if formatted:
        metrics["format_rate"] = float(np.mean(formatted))
    return metrics
