"""The benchmark of the whole tiny recipe: its statistics and verdicts on results made by hand, and its second look at rejection samples."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

from r1mega import plugins
from r1mega.data.records import SampleRecord, write_samples
from r1mega.types import Prompt

TASK = {"name": "tiny_world", "families": ["add"], "max_operand": 20}


@pytest.fixture(scope="module")
def claims(repo: Path) -> Iterator[ModuleType]:
    """The module that judges; its folder is on the path as it is for the script beside it."""
    sys.path.insert(0, str(repo / "launch" / "bench"))
    try:
        import _r1_claims
        yield _r1_claims
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def runs(claims: ModuleType) -> ModuleType:
    return sys.modules[claims.Result.__module__]


def shares(mean: float, seed: int, count: int = 600) -> dict[str, float]:
    """Shares of correct samples, of four, whose mean is about as given."""
    drawn = np.random.default_rng(seed).binomial(4, mean, count) / 4
    return {f"p{number}": float(share) for number, share in enumerate(drawn)}


def result(runs: ModuleType, seed: int, **changed: object) -> object:
    """A result for which every claim holds."""
    means = {"score_base": 0.4, "score_zero": 0.95, "score_dev1": 0.9, "score_dev2": 0.94, "score_dev3": 0.93, "score_r1": 0.94, "score_distill": 0.9,
             "score_student_rl": 0.8, "preference_dev3": 0.5, "preference_r1": 0.75}
    language = {"score_zero": 0.8, "score_dev2": 0.99}
    evaluations = {name: runs.Evaluation(shares(mean, 100 * seed + place), 4, 0.6, 0, language.get(name)) for place, (name, mean) in enumerate(means.items())}
    fields = {"seed": seed, "cost": runs.Cost(600.0, 3.0, 0.1), "evaluations": evaluations, "held_out": frozenset(shares(0, 0)), "trained_requests": 0,
              "verified": runs.Verified(10, 10), "flops": {"distill": {"model_flops": 1e12}, "student_rl": {"model_flops": 1.05e12}}}
    return runs.Result(**{**fields, **changed})


def failing(claims: ModuleType, results: Sequence[object]) -> set[str]:
    lines = claims.judge(results)
    assert claims.passed(lines) == (not any(line.counts and line.ok is False for line in lines))
    return {line.claim for line in lines if line.counts and line.ok is False}


def test_the_interval_is_that_of_a_paired_bootstrap(claims: ModuleType, runs: ModuleType) -> None:
    """With 600 problems the mean of the differences is as good as normal, which gives the ends; unpaired, they would lie much wider."""
    before = shares(0.5, 1)
    generator = np.random.default_rng(2)
    after = {name: min(1.0, share + generator.choice([0, 0, 0.25])) for name, share in before.items()}
    one, two = (runs.Evaluation(rates, 4, 0.6, 0, None) for rates in (before, after))
    change = claims.paired([one], [two])
    differences = np.array([after[name] - before[name] for name in before])
    half = statistics.NormalDist().inv_cdf(0.975) * differences.std() / math.sqrt(len(differences))
    assert math.isclose(change.mean, differences.mean())
    assert (change.low, change.high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.001)
    assert half < 0.5 * 1.96 * math.hypot(np.std(list(before.values())), np.std(list(after.values()))) / math.sqrt(len(differences))
    assert claims.paired([one], [two]) == change, "the same data must give the same interval"


def test_problems_are_drawn_once_for_all_seeds(claims: ModuleType, runs: ModuleType) -> None:
    """Three seeds that say the same are no more problems: the interval is that of one."""
    one, two = (runs.Evaluation(shares(mean, seed), 4, 0.6, 0, None) for mean, seed in ((0.5, 1), (0.6, 2)))
    alone, thrice = claims.paired([one], [two]), claims.paired([one] * 3, [two] * 3)
    assert (thrice.mean, thrice.low, thrice.high) == pytest.approx((alone.mean, alone.low, alone.high))


def test_evaluations_on_other_problems_are_not_paired(claims: ModuleType, runs: ModuleType) -> None:
    one = runs.Evaluation({"a": 1.0, "b": 0.5}, 4, 0.6, 0, None)
    with pytest.raises(ValueError, match="different problems"):
        claims.paired([one], [dataclasses.replace(one, rates={"a": 1.0, "c": 0.5})])
    with pytest.raises(ValueError, match="'b' has no sample"):
        claims.paired([one], [dataclasses.replace(one, rates={"a": 1.0, "b": None})])


def test_a_good_recipe_passes(claims: ModuleType, runs: ModuleType) -> None:
    lines = claims.judge([result(runs, seed) for seed in (0, 1, 2)])
    assert [line for line in lines if line.ok is not True] == []
    assert {line.seed for line in lines} == {0, 1, 2, None}
    assert claims.passed(lines)


def test_each_broken_promise_is_named(claims: ModuleType, runs: ModuleType) -> None:
    good = [result(runs, seed) for seed in (0, 1)]
    evaluations = result(runs, 2).evaluations

    def with_score(name: str, **changed: object) -> object:
        return result(runs, 2, evaluations={**evaluations, name: dataclasses.replace(evaluations[name], **changed)})

    broken = {
        "evaluation": with_score("score_r1", temperature=1.0),
        "zero over base": with_score("score_base", rates=shares(0.7, 5)),
        "language of zero": with_score("score_zero", language=0.95),
        "language of dev2 (reasoning RL)": with_score("score_dev2", language=0.9),
        "rejection samples verified": result(runs, 2, verified=runs.Verified(10, 9, "x")),
        "held-out requests": result(runs, 2, trained_requests=1),
        "accuracy zero -> dev2": with_score("score_dev2", rates=shares(0.6, 5)),
        "preference dev3 -> r1, by the rule": with_score("preference_r1", rates=shares(0.0, 5)),
        "accuracy dev3 -> r1": with_score("score_r1", rates=shares(0.5, 5)),
        "distilled over RL alone": with_score("score_distill", rates=shares(0.1, 5)),
        "student FLOPs": result(runs, 2, flops={"distill": {"model_flops": 1e12}, "student_rl": {"model_flops": 0.9e12}}),
        "seconds": result(runs, 2, cost=runs.Cost(901.0, 3.0)),
        "peak GiB": result(runs, 2, cost=runs.Cost(600.0, 8.0)),
    }
    assert {claim: failing(claims, [*good, one]) for claim, one in broken.items()} == {claim: {claim} for claim in broken}
    assert failing(claims, [*good, result(runs, 2, flops={})]) == {"student FLOPs"}, "a figure that is absent is no figure that holds"
    assert failing(claims, [*good, result(runs, 2, held_out=frozenset())]) == {"evaluation"}
    assert failing(claims, [*good, result(runs, 2, cost=runs.Cost(600.0))]) == set(), "what nobody measured fails nobody"


@pytest.fixture
def sampled(tmp_path: Path) -> Path:
    """The folder of a stage `sample` whose settings are written; its rows are the test's."""
    term = {"name": "accuracy", "settings": {"extract": "answer_tag"}}
    template = {"response": "<think>{reasoning}</think><answer>{response}</answer>"}
    config = {"seed": 0, "task": TASK, "reward": {"terms": {"accuracy": term}}, "template": template}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture(scope="module")
def problem() -> Prompt:
    plugin = plugins.load().registry.get("tasks", "tiny_world")
    assert plugin.config is not None
    task = plugin.factory(plugin.config(**{key: value for key, value in TASK.items() if key != "name"}))
    return task.prompts("train")[0]


def row(problem: Prompt, **changed: object) -> SampleRecord:
    good = SampleRecord(f"{problem.id}@0", problem.question, "so", str(problem.answer), problem.answer, provenance={"prompt_id": problem.id})
    return dataclasses.replace(good, **changed)


@pytest.mark.parametrize(("changed", "correct"), [
    ({}, 1),
    ({"response": "no number"}, 0),
    ({"response": "1", "answer": "1"}, 0),  # right by a reference that is not the task's
    ({"prompt": "another question"}, 0),
    ({"provenance": {"prompt_id": "add:no such problem"}}, 0),
    ({"reasoning": "<answer>7</answer>"}, 0),  # two answers: the reward finds none
])
def test_rejection_samples_are_judged_without_what_the_stage_wrote(runs: ModuleType, sampled: Path, problem: Prompt, changed: dict[str, object],
                                                                   correct: int) -> None:
    write_samples(sampled / "artifacts" / "samples", [row(problem, **changed)])
    seen = runs.verify(sampled, {problem.id: problem})
    assert (seen.rows, seen.correct, bool(seen.first_wrong)) == (1, correct, not correct)


def test_memory_counts_the_descendants(runs: ModuleType) -> None:
    hungry = "import sys; block = bytearray(200 << 20); print(flush=True); sys.stdin.read()"
    alone = runs.memory(os.getpid())
    with subprocess.Popen([sys.executable, "-c", hungry], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert runs.memory(os.getpid()) - alone > 190 << 20
        child.communicate(b"")
    assert runs.memory(child.pid) == 0


def test_an_unfinished_run_is_refused(runs: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"recipe": "r1_tiny", "seed": 0, "stages": {"base": {"state": "running", "seconds": None}}}))
    with pytest.raises(SystemExit, match="not a finished run"):
        runs.read(tmp_path)
