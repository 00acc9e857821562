"""The figures of an evaluation, against combinatorics, simulation and worked cases."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest

from r1mega.rollout.metrics_eval import ProblemResult, bootstrap_interval, consensus, normal_form, pass_at_k, problem_result, summarise, vote
from r1mega.types import Completion, EncodedPrompt, Prompt, RolloutGroup, ScoredGroup


def result(*correct: bool, **changes: object) -> ProblemResult:
    fields = {"correct": correct, "lengths": (4,) * len(correct), "truncated": (False,) * len(correct), "consensus": None, "failed": 0, **changes}
    return ProblemResult(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "c", "k"), [(n, c, k) for n in range(1, 8) for c in range(n + 1) for k in range(1, n + 1)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_correct_sample(n: int, c: int, k: int) -> None:
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_is_exact_where_binomials_overflow_floats() -> None:
    exact = 1 - comb(9_990, 500) / comb(10_000, 500)  # integers of thousands of digits
    assert pass_at_k(10_000, 10, 500) == pytest.approx(exact, rel=1e-12)
    for wrong in ((4, 5, 1), (4, 1, 5), (4, -1, 1), (4, 1, 0)):
        with pytest.raises(ValueError, match="not defined"):
            pass_at_k(*wrong)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator, inside = np.random.default_rng(3), 0
    for trial in range(200):
        low, high = bootstrap_interval(generator.binomial(4, 0.6, 80) / 4, seed=trial, resamples=300)
        inside += low <= 0.6 <= high
    assert 180 <= inside <= 198, f"{inside} of 200 intervals of 95% hold the mean"
    assert bootstrap_interval([0.0, 1.0, 1.0], 5) == bootstrap_interval([0.0, 1.0, 1.0], 5)


@pytest.mark.parametrize(("answers", "same"), [
    (["1/2", "0.5", r"\frac{1}{2}", r"\dfrac12", "0.50", "$0.5$"], True), (["1,000", "1000", "1000.0"], True), (["A", "a"], True),
    (["x^2 + 1", "x^2+1"], True), (["(x+1)", r"\left(x + 1\right)"], True), (["1", "2"], False), (["50%", "50"], False), (["x+1", "x-1"], False)])
def test_answers_that_are_the_same_vote_together(answers: list[str], same: bool) -> None:
    assert (len({normal_form(answer) for answer in answers}) == 1) == same, [normal_form(answer) for answer in answers]


def test_the_majority_decides_and_samples_without_an_answer_do_not_vote() -> None:
    assert consensus(["1", "1", "2"], [True, True, False])
    assert not consensus(["1", "2", "2"], [True, False, False])
    assert consensus([None, None, "1"], [False, False, True])
    assert not consensus([None], [False])
    assert consensus(["1", "2"], [True, False]), "the earlier of equals wins"


def test_the_vote_of_a_choice_is_its_letter() -> None:
    prompt = Prompt("p", "q", "B", metadata={"options": 4})
    assert [vote(text, prompt) for text in (r"\boxed{B}", "<answer>(b)</answer>", "The answer is B.", r"\boxed{4}")] == ["B", "B", "B", None]


def test_summary_figures() -> None:
    results = [result(True, True, domain="math", consensus=True, truncated=(True, False), terms={"format": (1.0, 0.0)}, subject="algebra"),
               result(True, False, domain="code", lengths=(8, 8), terms={"language_consistency": (0.5, 1.0)}),
               result(False, False, domain="math", consensus=False, failed=1, terms={"format": (0.0,)}, subject="algebra")]
    figures = summarise(results, seed=0)
    low, high = figures.pop("pass_at_1_ci95")
    assert 0 <= low < 0.5 < high <= 1
    domains, subjects = figures.pop("by_domain"), figures.pop("by_subject")
    assert {name: part["pass_at_1"] for name, part in domains.items()} == {"code": 0.5, "math": 0.5}
    assert domains["math"]["problems"] == 2
    assert set(subjects) == {"", "algebra"}
    assert figures == {
        "problems": 3, "samples_per_problem": 2, "pass_at_1": 0.5, "cons_at_k": 0.5, "pass_at_2": pytest.approx(2 / 3), "mean_length": pytest.approx(32 / 6),
        "truncated_rate": pytest.approx(1 / 6), "reward_failures": 1, "reward_terms": {"format": pytest.approx(1 / 3), "language_consistency": 0.75},
        "format_rate": pytest.approx(1 / 3), "language_consistency": 0.75}


def test_refusal_rates_count_refusals_and_not_correct_replies() -> None:
    figures = summarise([result(True, True, refusal_expected=True), result(False, True, refusal_expected=True),
                         result(True, True, True, False, refusal_expected=False)], seed=0)
    assert figures["refusal_rate_unsafe"] == 0.75
    assert figures["refusal_rate_safe"] == 0.25
    assert "refusal_rate_safe" not in summarise([result(True)], seed=0)


def test_a_group_becomes_a_result() -> None:
    completions = tuple(Completion(f"p#{k}", (1,) * (k + 1), (0.0,) * (k + 1), text, finish, 0) for k, (text, finish) in enumerate(
        [(r"\boxed{0.5}", "stop"), (r"\boxed{\frac12}", "stop"), (r"\boxed{3}", "length")]))  # type: ignore[arg-type]
    prompt = EncodedPrompt(Prompt("p", "q", "1/2", domain="math", metadata={"subject": "halves"}), "q", (1,))
    scored = ScoredGroup(RolloutGroup(prompt, completions), (1.0, 1.0, 0.0), {"accuracy": (1.0, 1.0, float("nan"))}, (True, True, False))
    assert problem_result(scored, "accuracy") == ProblemResult(
        correct=(True, True), lengths=(1, 2, 3), truncated=(False, False, True), consensus=True, failed=1, id="p", domain="math", subject="halves",
        terms={"accuracy": (1.0, 1.0)})
