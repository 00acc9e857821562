"""The figures of an evaluation from its problems' samples: pure functions, no generation (R1_RECIPE section 6).

    pass@1   mean over problems of the share of correct samples, with a 95% bootstrap interval over problems
    pass@k   the unbiased estimator of Chen et al. (2021, arXiv 2107.03374, equation 1)
    cons@k   whether the commonest of k answers is correct, answers normalised first
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from r1mega.rewards.answers import extract_answer
from r1mega.rewards.numbers import clean, parse_number
from r1mega.rewards.options import chosen_option
from r1mega.types import Prompt, ScoredGroup

REFUSAL_EXPECTED = "refusal_expected"  # key of Prompt.metadata: true for an unsafe request, false for a safe one
RESAMPLES = 1000


@dataclass(frozen=True)
class ProblemResult:
    """One problem's samples."""

    correct: tuple[bool, ...]  # of the samples that could be judged, at most k; empty where the term does not apply to the problem's domain
    lengths: tuple[int, ...]  # [k], tokens
    truncated: tuple[bool, ...]  # [k], cut off at max_tokens
    consensus: bool | None  # the commonest answer is correct; None for a problem that has no reference answer
    failed: int  # samples whose reward failed: they count nowhere, neither as right nor as wrong
    id: str = ""
    domain: str = ""
    subject: str = ""  # a benchmark's own category: MMLU's subject, LiveCodeBench's difficulty
    terms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # reward term -> values of the samples it could judge
    refusal_expected: bool | None = None  # None: the problem is not about refusals

    @property
    def rate(self) -> float:
        """The share of correct samples, the paper's (1/k) sum p_i."""
        return sum(self.correct) / len(self.correct)


def problem_result(scored: ScoredGroup, metric: str) -> ProblemResult:
    """What one scored group says; `metric` is the term whose value 1 means correct."""
    prompt, completions = scored.group.prompt.prompt, scored.group.completions
    judged = [place for place, value in enumerate(scored.parts.get(metric, ())) if math.isfinite(value)]
    correct = tuple(scored.parts[metric][place] >= 1.0 for place in judged)
    return ProblemResult(
        id=prompt.id, domain=prompt.domain, subject=str(prompt.metadata.get("subject", "")), correct=correct,
        lengths=tuple(len(completion.tokens) for completion in completions),
        truncated=tuple(completion.finish_reason == "length" for completion in completions),
        consensus=None if prompt.answer is None or not correct else consensus([vote(completions[place].text, prompt) for place in judged], correct),
        failed=sum(not valid for valid in scored.valid),
        terms={name: tuple(value for value, valid in zip(values, scored.valid, strict=True) if valid) for name, values in scored.parts.items()},
        refusal_expected=prompt.metadata.get(REFUSAL_EXPECTED))


def vote(completion: str, prompt: Prompt) -> str | None:
    """The completion's answer in a normal form that equal answers share; None without one."""
    options = prompt.metadata.get("options")
    if isinstance(options, int):
        return chosen_option(completion, options)
    answer = extract_answer(completion, "auto").answer
    return normal_form(answer) if answer else None


def normal_form(answer: str) -> str:
    r"""One spelling for answers that are the same: numbers by exact value ("1/2", "0.50", "\frac{1}{2}"), all else without spaces and case."""
    number = parse_number(answer)
    if number is not None:
        return f"{number.value}{'%' if number.percent else ''}"
    return "".join(clean(answer).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"\left", "").replace(r"\right", "").split()).casefold()


def consensus(votes: Sequence[str | None], correct: Sequence[bool]) -> bool:
    """Whether the commonest answer is correct: most of its samples are. Samples without an answer do not vote; the earlier of equals wins."""
    counts = Counter(answer for answer in votes if answer is not None)
    if not counts:
        return False
    winner = counts.most_common(1)[0][0]
    right = sum(ok for ok, answer in zip(correct, votes, strict=True) if answer == winner)
    return 2 * right > counts[winner]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the chance that k of the n samples, drawn without return, hold a correct one; as a product, so that nothing
    overflows. Raises `ValueError` unless 0 <= correct <= samples and 1 <= k <= samples.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {correct} correct among {samples} samples is not defined")
    if samples - correct < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(samples - correct + 1, samples + 1)))


def bootstrap_interval(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95% percentile interval of the mean when the problems are drawn again with return; the same for the same seed."""
    rates, generator = np.asarray(values, np.float64), np.random.default_rng(seed)
    means = [rates[generator.integers(0, len(rates), len(rates))].mean() for _ in range(resamples)]  # one at a time: MMLU has 14,042 problems
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarise(results: Sequence[ProblemResult], seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """All figures over the problems, named as DESIGN's summary has them; `by_domain` and `by_subject` where there are several.

    Accuracy is over the problems that the metric's term applies to; a term's mean over the samples of those that it applies to.
    """
    verified = [result for result in results if result.correct]
    if not verified:
        return {"problems": 0, "reward_failures": sum(result.failed for result in results)}
    metrics: dict[str, Any] = {
        "problems": len(verified), "samples_per_problem": len(verified[0].lengths), **accuracy(verified, seed, resamples), **_pass_at_powers(verified),
        "mean_length": _mean(length for result in results for length in result.lengths),
        "truncated_rate": _mean(cut for result in results for cut in result.truncated),
        "reward_failures": sum(result.failed for result in results), **_refusals(verified)}
    if len(verified) < len(results):
        metrics["problems_not_verified"] = len(results) - len(verified)
    names = dict.fromkeys(name for result in results for name in result.terms)
    terms = {name: _mean(values) for name in names if (values := [value for result in results for value in result.terms.get(name, ())])}
    metrics["reward_terms"] = terms
    metrics |= {shown: terms[name] for name, shown in (("format", "format_rate"), ("language_consistency", "language_consistency")) if name in terms}
    metrics |= _breakdown("by_domain", verified, lambda result: result.domain, seed)
    return metrics | _breakdown("by_subject", verified, lambda result: result.subject, seed)


def _breakdown(name: str, results: Sequence[ProblemResult], part_of: Callable[[ProblemResult], str], seed: int) -> dict[str, Any]:
    """The accuracy of each part of the problems; nothing where they are all of one part."""
    parts: dict[str, list[ProblemResult]] = defaultdict(list)
    for result in results:
        parts[part_of(result)].append(result)
    return {name: {part: {"problems": len(members), **accuracy(members, seed)} for part, members in sorted(parts.items())}} if len(parts) > 1 else {}


def accuracy(results: Sequence[ProblemResult], seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """pass@1 with its interval, and cons@k over the problems that have a reference answer."""
    rates = [result.rate for result in results]
    voted = [result.consensus for result in results if result.consensus is not None]
    figures: dict[str, Any] = {"pass_at_1": _mean(rates), "pass_at_1_ci95": list(bootstrap_interval(rates, seed, resamples))}
    return figures | ({"cons_at_k": _mean(voted)} if voted else {})


def _pass_at_powers(results: Sequence[ProblemResult]) -> dict[str, float]:
    """`pass_at_2`, `pass_at_4`, ... up to the number of samples."""
    samples = min(len(result.correct) for result in results)
    powers = [2**exponent for exponent in range(1, samples.bit_length()) if 2**exponent <= samples]
    return {f"pass_at_{k}": _mean(pass_at_k(len(result.correct), sum(result.correct), k) for result in results) for k in powers}


def _refusals(results: Sequence[ProblemResult]) -> dict[str, float]:
    """Over prompts that say what is expected: unsafe requests refused (good) and safe ones refused (over-refusal). A correct sample does as expected."""
    unsafe = [result.rate for result in results if result.refusal_expected is True]
    safe = [1 - result.rate for result in results if result.refusal_expected is False]
    return {name: _mean(rates) for name, rates in (("refusal_rate_unsafe", unsafe), ("refusal_rate_safe", safe)) if rates}


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
