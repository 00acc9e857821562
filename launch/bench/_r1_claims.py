"""What the tiny recipe promises, judged: pure functions from the results of some seeds to lines with a figure and a verdict.

**Intervals.** The two models of a comparison answered the same problems, so what is compared is, for every problem, the difference of their shares of
correct samples. The 95% interval is the percentile bootstrap over problems: problems are drawn again with return, a drawn problem brings the
differences of both models in every seed, and the mean of a draw is the mean over the seeds (strata of equal weight) of the mean over its problems.
Because all seeds are measured on one set of problems, they are drawn jointly: a hard problem is hard in every seed, and drawing anew for each seed would
make the interval too narrow. The lower end of the two-sided interval is judged, which is stricter than a one-sided bound. It speaks about
problems, not about seeds: each seed is shown alone as well.

**What counts.** A bound is judged on all seeds together; a single seed's line shows its own and decides nothing. All other claims must hold in every seed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from _r1_runs import PREFERENCES, SCORES, Evaluation, Result

RESAMPLES = 10_000
PROBLEMS, SAMPLES, TEMPERATURE = 500, 4, 0.6
SECONDS, GIB = 900.0, 8.0


@dataclass(frozen=True)
class Change:
    """A mean difference and the ends of its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Line:
    """One claim about one seed, or about all of them together."""

    claim: str
    seed: int | None  # None: all
    found: str
    wanted: str
    ok: bool | None  # None: not measured
    counts: bool = True  # whether the benchmark fails with it


def paired(before: Sequence[Evaluation], after: Sequence[Evaluation]) -> Change:
    """The change between two models over seeds (one evaluation each). Raises `ValueError` unless all are about the same problems."""
    problems = list(before[0].rates)
    differences = np.array([[_rate(two, problem) - _rate(one, problem) for problem in problems]
                            for one, two in zip(before, after, strict=True) if _same(problems, one, two)])
    low, high = np.percentile(_draws(len(problems)) @ differences.mean(axis=0), [2.5, 97.5])
    return Change(float(differences.mean()), float(low), float(high))


@functools.lru_cache(maxsize=2)
def _draws(count: int) -> npt.NDArray[np.float32]:
    """[RESAMPLES, count]: each row is one draw of so many problems, as each problem's share of it; the same on every call."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return (drawn / count).astype(np.float32)


def _same(problems: Sequence[str], *evaluations: Evaluation) -> bool:
    if any(set(one.rates) != set(problems) for one in evaluations):
        raise ValueError("the evaluations are about different problems and cannot be paired; judge runs with the same task settings")
    return True


def _rate(evaluation: Evaluation, problem: str) -> float:
    rate = evaluation.rates[problem]
    if rate is None:
        raise ValueError(f"problem '{problem}' has no sample that could be judged")
    return rate


def judge(results: Sequence[Result]) -> list[Line]:
    """All lines, claim by claim."""
    lines = [_sizes(result) for result in results]
    lines += _gain("zero over base", "score_base", "score_zero", results)
    lines += [_language("language of zero", "score_zero", result, below=0.90) for result in results]
    lines += [_language("language of dev2 (reasoning RL)", "score_dev2", result, least=0.97) for result in results]
    lines += _bound("accuracy zero -> dev2", "score_zero", "score_dev2", results, at_least=-0.05)
    lines += [_verified(result) for result in results]
    lines += [_requests(result) for result in results]
    lines += _bound("preference dev3 -> r1, by the rule", "preference_dev3", "preference_r1", results, above=0.0)
    lines += _bound("accuracy dev3 -> r1", "score_dev3", "score_r1", results, at_least=-0.05)
    lines += _bound("distilled over RL alone", "score_student_rl", "score_distill", results, above=0.0)
    lines += [_flops(result) for result in results]
    for result in results:
        lines += [_cost("seconds", result, result.cost.seconds, SECONDS, "{:.0f}"), _cost("peak GiB", result, result.cost.peak_gib, GIB, "{:.2f}")]
    return lines


def passed(lines: Sequence[Line]) -> bool:
    return not any(line.counts and line.ok is False for line in lines)


def _sizes(result: Result) -> Line:
    """At least 500 problems x 4 samples at 0.6, all held out, the same for every model, no sample lost."""
    scores = [result.evaluations[name] for name in SCORES]
    problems = set(scores[0].rates)
    samples, temperatures = sorted({one.samples for one in scores}), sorted({one.temperature for one in scores})
    lost = sum(one.failures for one in scores) + sum(rate is None for one in scores for rate in one.rates.values())
    ok = (len(problems) >= PROBLEMS and samples[0] >= SAMPLES and temperatures == [TEMPERATURE] and problems <= result.held_out and not lost
          and all(set(one.rates) == problems for one in scores))
    found = f"{len(problems)} problems x {'/'.join(map(str, samples))} samples at {'/'.join(map(str, temperatures))}"
    if not problems <= result.held_out:
        found += f", {len(problems - result.held_out)} of them not held out"
    return Line("evaluation", result.seed, found + (f", {lost} not judged" if lost else ""),
                f"at least {PROBLEMS} held out x {SAMPLES} at {TEMPERATURE}", ok)


def _requests(result: Result) -> Line:
    """The preference is measured on requests that neither the SFT, nor the reward models, nor the RL has seen."""
    rates = [set(result.evaluations[name].rates) for name in PREFERENCES]
    found = f"{len(rates[0])} requests, {result.trained_requests} of them trained on"
    return Line("held-out requests", result.seed, found, "none trained on", rates[0] == rates[1] and bool(rates[0]) and not result.trained_requests)


def _change(before: str, after: str, results: Sequence[Result]) -> Change:
    return paired([result.evaluations[before] for result in results], [result.evaluations[after] for result in results])


def _gain(claim: str, before: str, after: str, results: Sequence[Result]) -> list[Line]:
    """The mean itself has to reach +0.35, in every seed and so in all."""
    changes = [(result.seed, _change(before, after, [result])) for result in results]
    return [Line(claim, seed, str(change), "at least +0.35", change.mean >= 0.35) for seed, change in [*changes, (None, _change(before, after, results))]]


def _bound(claim: str, before: str, after: str, results: Sequence[Result], *, at_least: float | None = None, above: float | None = None) -> list[Line]:
    """The lower end of the interval has to be at least, or above, a value."""
    def holds(change: Change) -> bool:
        return (at_least is None or change.low >= at_least) and (above is None or change.low > above)

    wanted = f"low end at least {at_least:+.2f}" if at_least is not None else f"low end above {above:+.2f}"
    pooled, alone = _change(before, after, results), [(result.seed, _change(before, after, [result])) for result in results]
    return [*(Line(claim, seed, str(change), wanted, holds(change), counts=False) for seed, change in alone),
            Line(claim, None, str(pooled), wanted, holds(pooled))]


def _language(claim: str, stage: str, result: Result, *, below: float | None = None, least: float | None = None) -> Line:
    value = result.evaluations[stage].language
    if value is None:
        return Line(claim, result.seed, "not in the evaluation's metrics", "language_consistency", False)
    ok = (below is None or value < below) and (least is None or value >= least)
    return Line(claim, result.seed, f"{value:.3f}", f"below {below:.2f}" if below is not None else f"at least {least:.2f}", ok)


def _verified(result: Result) -> Line:
    seen = result.verified
    found = f"{seen.correct} of {seen.rows} rows" + (f", wrong is {seen.first_wrong}" if seen.first_wrong else "")
    return Line("rejection samples verified", result.seed, found, "all", 0 < seen.rows == seen.correct)


def _flops(result: Result) -> Line:
    """The student's own operations, generation included: RL gets as many as distillation, or a little more, never less."""
    wanted = "RL 1.00 to 1.10 of distillation"
    counts = [result.flops.get(name, {}).get("model_flops") for name in ("distill", "student_rl")]
    distill, alone = counts
    if distill is None or alone is None or distill <= 0:
        missing = [name for name, count in zip(("distill", "student_rl"), counts, strict=True) if not count]
        return Line("student FLOPs", result.seed, f"no metric model_flops in {' and '.join(missing)}", wanted, False)
    return Line("student FLOPs", result.seed, f"{alone:.3g} / {distill:.3g} = {alone / distill:.3f}", wanted, 1.0 <= alone / distill <= 1.1)


def _cost(name: str, result: Result, value: float | None, most: float, shape: str) -> Line:
    """Seconds may be all 900; memory must stay under 8 GiB."""
    strict = name == "peak GiB"
    wanted = f"{'under' if strict else 'at most'} {most:.0f}"
    if value is None:
        return Line(name, result.seed, "not measured", wanted, None)
    load = f" (load {result.cost.load:.1f} at the start)" if name == "seconds" and result.cost.load is not None else ""
    return Line(name, result.seed, shape.format(value) + load, wanted, value < most if strict else value <= most)


def figures(result: Result) -> Mapping[str, Any]:
    """A seed's figures for a program to read."""
    scored = {name: {"pass_at_1": float(np.mean([rate for rate in one.rates.values() if rate is not None])), "problems": len(one.rates),
                     "samples": one.samples, "temperature": one.temperature, "language_consistency": one.language}
              for name, one in result.evaluations.items()}
    return {"seed": result.seed, **vars(result.cost), "evaluations": scored, "verified": vars(result.verified),
            "flops": {name: result.flops[name] for name in ("distill", "student_rl") if name in result.flops}}
