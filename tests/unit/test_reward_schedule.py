"""Which reward terms, prompts and lengths hold at a step, and what becomes of terms that do not apply."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from r1mega_plugins.rewards.language_consistency import LanguageConsistency, LanguageConsistencyConfig
from r1mega_plugins.stages.rl import RLConfig

from r1mega.compose_hydra import conf_folder
from r1mega.config import RewardConfig, RewardTerm
from r1mega.errors import ConfigError, PluginError, RewardError
from r1mega.rewards.build import build_reward
from r1mega.rewards.pool import RewardPool
from r1mega.rewards.schedule import applicable, check_covered
from r1mega.rewards.scorers import ModelTerms, build_scorers
from r1mega.rollout.collect import WorkItem, generate_and_score
from r1mega.rollout.curriculum import PromptStream, StepWindow, TokenCap, changes, check_caps, max_tokens_at
from r1mega.rollout.metrics_eval import problem_result, summarise
from r1mega.rollout.prompts import stream_indices
from r1mega.rollout.statistics import rollout_means, rollout_sums
from r1mega.types import Completion, EncodedPrompt, GenerationRequest, Prompt, RewardSample, RolloutGroup, SamplingParams, ScoredGroup

TERMS = {
    "accuracy": RewardTerm("accuracy", domains=["math"]),
    "format": RewardTerm("format", weight=0.5),
    "language_consistency": RewardTerm("language_consistency", from_step=100, until_step=200),
}
HELPFUL = RewardTerm("reward_model", weight=2.0, domains=["helpful"], from_step=1300, scope="summary")


def encoded(name: str, domain: str, text: str = "") -> EncodedPrompt:
    return EncodedPrompt(Prompt(name, name, "5", domain), text or f"{name}\n", (1, 2))


def scored(domain: str, rewards: Sequence[float], valid: Sequence[bool] | None = None, text: str = "<think>a</think><answer>5</answer>",
           **parts: tuple[float, ...]) -> ScoredGroup:
    completions = tuple(Completion(f"{domain}@0#{k}", (7,) * (k + 1), (0.0,) * (k + 1), text, "stop", 0) for k in range(len(rewards)))
    return ScoredGroup(RolloutGroup(encoded(domain, domain), completions), tuple(rewards), parts, tuple(valid or [True] * len(rewards)))


# -------------------------------------------------------------------------------------------------------------------------- which terms count


@pytest.mark.parametrize(("domain", "step", "expected"), [
    ("math", 0, ("accuracy", "format")), ("helpful", 0, ("format",)), ("math", 99, ("accuracy", "format")),
    ("math", 100, ("accuracy", "format", "language_consistency")), ("helpful", 199, ("format", "language_consistency")),
    ("math", 200, ("accuracy", "format")), ("math", None, ("accuracy", "format", "language_consistency")),
])
def test_terms_count_by_domain_and_step(domain: str, step: int | None, expected: tuple[str, ...]) -> None:
    assert applicable(TERMS, domain, step) == expected


def test_preference_terms_in_the_last_400_of_1700_steps() -> None:
    """R1_RECIPE 2.5."""
    counting = [step for step in range(1700) if applicable({"helpful": HELPFUL}, "helpful", step)]
    assert (len(counting), counting[0], counting[-1]) == (400, 1300, 1699)


def test_all_scenario_rewards_cover_every_domain_and_ask_models_what_they_learned() -> None:
    rewards = conf_folder() / "reward"
    tiny = yaml.safe_load((rewards / "r1_tiny.yaml").read_text())["terms"]
    terms = {name: RewardTerm(term["name"], domains=term.get("domains", [])) for name, term in tiny.items()}
    check_covered(terms, ["math", "logic", "code", "general", "helpful", "safety"], 0)
    assert applicable(terms, "general") == ("format",)
    assert applicable(terms, "helpful") == ("format", "helpful")
    settings = yaml.safe_load((rewards / "r1_all_scenario.yaml").read_text())["terms"]
    assert settings["format"]["settings"]["empty_reasoning"], "no reasoning is allowed here"
    assert LanguageConsistency(LanguageConsistencyConfig(**settings["language_consistency"]["settings"])).score(
        [RewardSample("Hi!", "<think></think>Hello!")])[0].value == 1.0, "and so it costs nothing"


def test_a_domain_without_a_reward_is_refused() -> None:
    check_covered({**TERMS, "helpful": HELPFUL}, {"math", "helpful"}, 0)
    with pytest.raises(ConfigError, match="at step 0 prompts of domain 'helpful' are drawn but no term applies"):
        check_covered({"accuracy": TERMS["accuracy"], "helpful": HELPFUL}, {"math", "helpful"}, 0)
    check_covered({"accuracy": TERMS["accuracy"], "helpful": HELPFUL}, {"math", "helpful"}, 1300)


@pytest.mark.parametrize("window", [(-1, None), (5, 5), (5, 3)])
def test_impossible_windows(window: tuple[int, int | None]) -> None:
    with pytest.raises(ValueError, match="no step lies between"):
        RewardTerm("format", from_step=window[0], until_step=window[1])
    with pytest.raises(ValueError, match="no step lies between"):
        StepWindow(*window)


# ------------------------------------------------------------------------------------------------------------------------------ the pool


class Fixed:
    """A generator that says the same to every prompt."""

    def __init__(self, text: str) -> None:
        self.text = text

    def generate(self, requests: Sequence[GenerationRequest], on_finish: Any) -> None:
        for request in requests:
            on_finish(Completion(request.id, (3, 4), (0.0, 0.0), self.text, "stop", 0))


class Alone:
    is_lead = True

    def from_lead(self, value: Any) -> Any:
        return value


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(TERMS) as pool:
        yield pool


def collect(pool: RewardPool, step: int | None) -> dict[str, ScoredGroup]:
    items = [WorkItem(0, encoded("2+3", "math")), WorkItem(1, encoded("hello", "helpful"))]
    terms_of = None if step is None else lambda prompt: applicable(TERMS, prompt.domain, step)
    groups, _ = generate_and_score(items, 3, generator=Fixed("<think>we add 所以</think><answer>5</answer>"), pool=pool, replica=Alone(),
                                   sampling=SamplingParams(8), seed=0, step=0, terms_of=terms_of)
    return {group.group.prompt.prompt.domain: group for group in groups}


def test_only_terms_that_apply_are_computed_and_added(pool: RewardPool) -> None:
    pool.stats()
    groups = collect(pool, step=0)
    assert groups["math"].parts == {"accuracy": (1.0,) * 3, "format": (1.0,) * 3}
    assert groups["math"].rewards == (1.5,) * 3
    assert groups["helpful"].parts == {"format": (1.0,) * 3}
    assert groups["helpful"].rewards == (0.5,) * 3
    assert pool.stats()["language_consistency/calls"] == 0
    groups = collect(pool, step=100)
    assert groups["math"].rewards == (2.0,) * 3
    assert groups["helpful"].rewards == (1.0,) * 3
    assert groups["helpful"].parts["language_consistency"] == (0.5,) * 3


def test_without_a_step_the_domain_alone_decides(pool: RewardPool) -> None:
    assert set(collect(pool, step=None)["helpful"].parts) == {"format", "language_consistency"}


def test_a_sample_to_which_nothing_applies_is_there_with_nothing(pool: RewardPool) -> None:
    groups, _ = generate_and_score([WorkItem(0, encoded("hello", "helpful"))], 2, generator=Fixed("hi"), pool=pool, replica=Alone(),
                                   sampling=SamplingParams(8), seed=0, step=0, terms_of=lambda _: ("accuracy",) if _.domain == "math" else ())
    assert (groups[0].parts, groups[0].rewards, groups[0].valid) == ({}, (0.0, 0.0), (True, True))


def test_samples_of_one_group_with_different_terms_are_an_error(pool: RewardPool) -> None:
    turn = iter(["format", "accuracy"])
    with pytest.raises(RewardError, match="were scored by different reward terms"):
        generate_and_score([WorkItem(0, encoded("2+3", "math"))], 2, generator=Fixed("5"), pool=pool, replica=Alone(), sampling=SamplingParams(8),
                           seed=0, step=0, terms_of=lambda _: (next(turn),))


# ---------------------------------------------------------------------------------------------------------------------------------- means


def test_means_are_over_the_samples_that_have_the_term() -> None:
    groups = [scored("math", [1.5, 0.5, math.nan], [True, True, False], accuracy=(1.0, 0.0, math.nan), format=(1.0, 1.0, 1.0)),
              scored("helpful", [0.5, 0.0], format=(1.0, 0.0))]
    names = ["accuracy", "format", "language_consistency"]
    one, two = rollout_sums(groups[:1], names), rollout_sums(groups[1:], names)
    assert one.keys() == two.keys(), "replicas with other prompts must send the same sums"
    metrics = rollout_means({name: one[name] + two[name] for name in one})
    assert (metrics["reward/accuracy"], metrics["reward/format"], metrics["accuracy"]) == (0.5, 0.75, 0.5)
    assert (metrics["reward"], metrics["reward_failed"], metrics["length"]) == (2.5 / 4, 1.0, 6 / 4)
    assert "reward/language_consistency" not in metrics


def test_evaluation_counts_accuracy_where_it_is_verified_and_other_terms_where_they_apply() -> None:
    groups = [scored("math", [1.0, 0.0], accuracy=(1.0, 0.0), format=(1.0, 1.0)),
              scored("helpful", [0.0, 1.0], format=(0.0, 1.0), language_consistency=(0.5, 1.0))]
    metrics = summarise([problem_result(group, "accuracy") for group in groups], seed=0)
    assert (metrics["problems"], metrics["problems_not_verified"], metrics["pass_at_1"]) == (1, 1, 0.5)
    assert (metrics["format_rate"], metrics["language_consistency"]) == (0.75, 0.75)


# --------------------------------------------------------------------------------------------------------------------- prompts and lengths


def stream(schedule: dict[str, StepWindow], seed: int = 3) -> PromptStream:
    prompts = [encoded(f"m{k}", "math") for k in range(10)] + [encoded(f"h{k}", "helpful") for k in range(5)]
    return PromptStream(prompts, schedule, seed)


def names(taken: Sequence[EncodedPrompt]) -> list[str]:
    return [one.prompt.id for one in taken]


def test_a_domain_is_drawn_in_its_window_alone() -> None:
    scheduled = stream({"helpful": StepWindow(from_step=1300, until_step=1500)})
    assert {name[0] for name in names(scheduled.take(1299, 0, 40))} == {"m"}
    assert sorted(names(scheduled.take(1300, 15, 15))) == sorted([f"m{k}" for k in range(10)] + [f"h{k}" for k in range(5)])
    assert {name[0] for name in names(scheduled.take(1500, 0, 40))} == {"m"}


def test_the_stream_is_a_pure_function_of_step_and_cursor() -> None:
    """Asked in any order, by streams of any history, and in pieces: what a resume relies on."""
    one, other = stream({"helpful": StepWindow(4)}), stream({"helpful": StepWindow(4)})
    late = names(one.take(6, 21, 9))
    assert names(one.take(2, 21, 9)) == names(other.take(2, 21, 9))
    assert names(other.take(6, 21, 4)) + names(other.take(6, 25, 5)) == late


def test_without_a_schedule_the_stream_is_the_tasks() -> None:
    prompts = [encoded(f"m{k}", "math") for k in range(10)] + [encoded(f"h{k}", "helpful") for k in range(5)]
    assert names(stream({}).take(7, 13, 30)) == [prompts[index].prompt.id for index in stream_indices(15, 13, 30, 3)]


def test_mistakes_in_the_prompt_schedule_are_named() -> None:
    with pytest.raises(ConfigError, match=r"prompt_schedule\.helpfull: no training prompt.*Did you mean 'helpful'"):
        stream({"helpfull": StepWindow(1)})
    with pytest.raises(ConfigError, match="at step 0 no domain is open"):
        stream({"helpful": StepWindow(1), "math": StepWindow(1)}).domains(0)


def test_changes_are_the_edges_of_all_windows() -> None:
    assert changes([(0, None), (1300, None), (100, 200), (5000, None)], 1700) == [0, 100, 200, 1300]


def test_the_length_cap_of_r1_zero() -> None:
    """R1_RECIPE section 1: 32,768 before step 8.2k, then 65,536."""
    caps = [TokenCap(8200, 65536)]
    check_caps(caps)
    assert [max_tokens_at(step, 32768, caps) for step in (0, 8199, 8200, 10400)] == [32768, 32768, 65536, 65536]
    assert max_tokens_at(5, 7, []) == 7


@pytest.mark.parametrize(("caps", "says"), [
    ([TokenCap(0, 5)], "from_step must be above 0"), ([TokenCap(5, 5), TokenCap(5, 6)], "rise from entry to entry"), ([TokenCap(5, 0)], "max_tokens=0")])
def test_impossible_caps(caps: list[TokenCap], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RLConfig(max_tokens_schedule=caps)


def test_what_does_not_fit_is_refused_with_the_config() -> None:
    from r1mega_plugins.models.qwen2 import Qwen2Config

    from r1mega.config import PluginChoice

    small = PluginChoice("qwen2", Qwen2Config(max_position_embeddings=40000))
    with pytest.raises(ConfigError, match=r"completions of 65536 tokens.*model\.max_position_embeddings=40000"):
        RLConfig(model=small, max_tokens_schedule=[TokenCap(8200, 65536)], micro_batch_tokens=131072)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="micro_batch_tokens=65536"):
        RLConfig(max_tokens_schedule=[TokenCap(8200, 65536)])
    RLConfig(max_tokens_schedule=[TokenCap(8200, 65536)], micro_batch_tokens=131072)


def test_a_metric_that_is_no_term_is_refused_with_the_config() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.metric=accuracy: no such reward term"):
        RLConfig(reward=RewardConfig(terms={"acuracy": RewardTerm("accuracy")}))


# ----------------------------------------------------------------------------------------------------------------------- terms with a scorer


class Brevity:
    """A real scorer: the shorter, the better."""

    version = "1"
    needs_scorer = True

    def __init__(self, broken: float | None = None) -> None:
        self.seen: list[tuple[str, str]] = []
        self.broken = broken

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        self.seen += [(prompt.id, response) for prompt, response in zip(prompts, responses, strict=True)]
        return [1.0 / len(response) if self.broken is None else self.broken for response in responses]


def test_a_scorer_term_adds_to_the_groups_of_its_domain_in_its_window() -> None:
    scorer = Brevity()
    terms = ModelTerms({"helpful": HELPFUL}, {"helpful": scorer}, Alone())
    groups = [scored("math", [1.0, 0.0], accuracy=(1.0, 0.0)), scored("helpful", [0.5, 0.5, 0.5], format=(1.0, 1.0, 1.0))]
    assert terms.add(groups, 1299) == groups
    assert scorer.seen == []
    math_group, helpful = terms.add(groups, 1300)
    assert math_group == groups[0]
    assert scorer.seen == [("helpful", "5")] * 3, "the summary alone"
    assert helpful.parts == {"format": (1.0,) * 3, "helpful": (1.0,) * 3}
    np.testing.assert_allclose(helpful.rewards, 0.5 + 2.0)


def test_the_tokens_that_scorers_read_are_told() -> None:
    class Reader(Brevity):
        def lengths(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[int]:
            return [len(prompt.question) + len(response) for prompt, response in zip(prompts, responses, strict=True)]

    groups = [scored("math", [1.0]), scored("helpful", [0.5, 0.5])]
    terms = ModelTerms({"helpful": HELPFUL, "other": HELPFUL}, {"helpful": Reader(), "other": Brevity()}, Alone())
    assert terms.lengths(groups, 1299) == []
    assert terms.lengths(groups, 1300) == [len("helpful") + len("5")] * 2, "of the summary, and of the scorer that can tell"


def test_a_scorer_is_called_on_a_replica_without_texts_too() -> None:
    """Its `score` is a collective: who has nothing to score must still take part."""
    calls = []
    scorer = Brevity()
    scorer.score = lambda _, responses: calls.append(list(responses)) or []  # type: ignore[assignment,func-returns-value,method-assign]
    ModelTerms({"helpful": HELPFUL}, {"helpful": scorer}, Alone()).add([scored("math", [1.0])], 1300)
    assert calls == [[]]


def test_a_scorer_that_breaks_its_contract_stops_the_run() -> None:
    terms = ModelTerms({"helpful": HELPFUL}, {"helpful": Brevity(broken=math.nan)}, Alone())
    with pytest.raises(RewardError, match="reward 'helpful': its scorer gave 2 values for 2 responses, or one that is not finite"):
        terms.add([scored("helpful", [0.0, 0.0])], 1300)


def test_a_connected_reward_model_that_nothing_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match="input 'helpful' is connected but no reward term reads it"):
        build_scorers({}, {"helpful": Path("anywhere")}, None, None)


def test_a_worker_refuses_a_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    from r1mega import plugins

    plugin = dataclasses.replace(plugins.load().registry.get("rewards", "format"), factory=Brevity, config=None)
    monkeypatch.setattr(type(plugins.load().registry), "get", lambda *_: plugin)
    with pytest.raises(PluginError, match="scores with the policy at hand, which only the stage 'rl' has"):
        build_reward("helpful", RewardTerm("brevity"))
