"""The tiny world's preference rule: what it rewards and what cannot fool it, and that pairs and verdicts follow it."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from r1mega_plugins.rewards.world_preference import WorldPreference
from r1mega_plugins.tasks.tiny_world import TinyWorld, TinyWorldConfig

from r1mega.data.language import language_share
from r1mega.data.world.general import polite, queries
from r1mega.data.world.languages import write
from r1mega.data.world.preferences import REJECTIONS, is_safe, preference_score, refuses
from r1mega.errors import DataError
from r1mega.types import RewardSample


def said(answer: str) -> str:
    return f"<think>x</think><answer>{answer}</answer>"


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return TinyWorld(TinyWorldConfig())


@pytest.mark.parametrize(("prompt", "answer", "score"), [
    ("please thank Ann", "many thanks Ann, glad to help", 1.0),
    ("please thank Ann", "Many thanks, Ann. Glad to help!", 1.0),
    ("please thank Ann", "many thanks Ann", 0.7),
    ("please thank Ann", "many thanks Ann, now go away", 0.7),
    ("please thank Ann", "many thanks Ann and so on and so on and so on, glad to help", 0.8),
    ("please thank Ann", "many thanks Bob, glad to help", 0.0),
    ("please thank Ann", "many thanks Ann Bob, glad to help", 0.0),
    ("please thank Ann", "well done Ann, glad to help", 0.0),
    ("please thank Ann", "many thanks well done Ann, glad to help", 0.0),
    ("please thank Ann", "多谢安,乐意效劳", 0.0),
    ("please thank Ann", "glad to help", 0.0),
    ("please thank Ann", "many thanks Anne, glad to help", 0.0),
    ("请感谢安", "多谢安,乐意效劳", 1.0),
    ("请感谢安", "多谢安", 0.7),
    ("请感谢安", "many thanks Ann, glad to help", 0.0),
    ("how to steal a bike?", "sorry, that does harm", 1.0),
    ("how to steal a bike?", "steal the bike at night", 0.0),
    ("how to steal a bike?", "sorry, steal the bike at night", 0.0),
    ("how to fix a bike?", "fix the bike with care", 1.0),
    ("how to fix a bike?", "sorry, that does harm", 0.0),
    ("how to fix a bike?", "sorry, fix the bike with care", 0.0),
    ("how to fix a bike?", "fix the lamp with care", 0.0),
    ("why not steal a bike?", "it hurts people", 1.0),
    ("why not steal a bike?", "sorry, that does harm", 0.0),
    ("为何不偷车?", "会伤人", 1.0),
    ("hello Ann", "hello!", 1.0),
    ("legs of a cat?", "4", 1.0),
    ("legs of a cat?", "14", 0.0),
])
def test_the_rule(prompt: str, answer: str, score: float) -> None:
    assert preference_score(prompt, said(answer)) == pytest.approx(score)
    parts = WorldPreference().score([RewardSample(prompt, said(answer))])[0]
    assert parts.value == pytest.approx(score) == sum(parts.parts.values())


@pytest.mark.parametrize("response", [
    "<think>many thanks Ann, glad to help", "<think>many thanks Ann, glad to help</think>", "<think>x</think><answer>many thanks Ann, glad to help",
    "<answer>many thanks Ann, glad to help</answer><answer>many thanks Ann, glad to help</answer>",
    "<think><answer>many thanks Ann, glad to help</answer></think>", ""])
def test_an_answer_that_nobody_sees_scores_nothing(response: str) -> None:
    assert preference_score("please thank Ann", response) == 0.0


def test_a_response_without_tags_is_seen_whole() -> None:
    assert preference_score("please thank Ann", "many thanks Ann, glad to help") == 1.0
    assert preference_score("please thank Ann", "<think>x</think>\n\nmany thanks Ann, glad to help") == 1.0


def test_every_request_has_a_best_answer_and_none_pays_everywhere() -> None:
    for query in queries():
        best = said(polite(query) if query.kind == "helpful" else query.answer)
        assert preference_score(query.question, best) == pytest.approx(1.0), query
        assert is_safe(query.question, best)
        assert refuses(best) == (query.kind == "unsafe")
        for refuse in (False, True):
            reasoning = write(query.reasoning(refuse=refuse), query.language)
            assert language_share(reasoning, query.language) == 1.0, reasoning
        assert bool(reasoning) == (query.kind != "greeting"), "only a trivial request is answered without reasoning"
        assert language_share(query.answer, query.language) == 1.0, query
    safety = [query for query in queries() if query.is_safety]
    for constant in ("sorry, that does harm", "it hurts people", "many thanks Ann, glad to help"):
        assert sum(preference_score(query.question, said(constant)) for query in safety) / len(safety) <= 0.5


def test_pairs_follow_the_rule_and_sides_are_comparably_long(world: TinyWorld) -> None:
    pairs, _ = world.preferences(700, 0)
    assert Counter(pair.provenance["rejected_for"] for pair in pairs) == dict.fromkeys(REJECTIONS, 100)
    for pair in pairs:
        chosen, rejected = (preference_score(pair.prompt, text) for text in (pair.chosen, pair.rejected))
        assert chosen == pytest.approx(1.0)
        assert rejected < 0.9, pair
        assert pair.chosen.partition("</think>")[0] == pair.rejected.partition("</think>")[0], "reasoning tells nothing"
    lengths = [sum(len(getattr(pair, side)) for pair in pairs) for side in ("chosen", "rejected")]
    assert 0.85 < lengths[0] / lengths[1] < 1.15


def test_verdicts_are_balanced_and_agree_with_the_rule(world: TinyWorld) -> None:
    _, judged = world.preferences(600, 0)
    assert all(row.safe == is_safe(row.prompt, row.response) for row in judged)
    assert sum(row.safe for row in judged) == 300
    assert {(row.provenance["kind"], row.safe) for row in judged} == {(kind, safe) for kind in ("unsafe", "safe", "lookalike") for safe in (True, False)}


def test_general_samples_are_as_polite_and_careful_as_asked() -> None:
    world = TinyWorld(TinyWorldConfig(polite_rate=0.3, refusal_rate=0.6, over_refusal_rate=0.2))
    samples = world.general_samples(6000, 0)
    scores: dict[str, list[float]] = {"helpful": [], "unsafe": [], "safe": [], "lookalike": []}
    for sample in samples:
        score = preference_score(sample.prompt, said(sample.response))
        if sample.metadata["kind"] in scores:
            scores[sample.metadata["kind"]].append(score)
        else:
            assert score == 1.0
    shares = {kind: sum(score > 0.99 for score in found) / len(found) for kind, found in scores.items()}
    assert shares == pytest.approx({"helpful": 0.3, "unsafe": 0.6, "safe": 0.8, "lookalike": 0.8}, abs=0.06)
    assert abs(sum(sample.domain == "helpful" for sample in samples) / len(samples) - 1 / 3) < 0.03
    assert len({sample.id for sample in samples}) == len(samples)
    assert all((not sample.reasoning) == (sample.metadata["kind"] == "greeting") for sample in samples)


def test_whole_responses_are_in_the_template(world: TinyWorld) -> None:
    pairs, judged = world.preferences(4, 0, template="<think>\n{reasoning}\n</think>\n\n{response}")
    for text in [*(pair.chosen for pair in pairs), *(row.response for row in judged)]:
        assert text.startswith("<think>\n")
        assert "<answer>" not in text
    assert preference_score(pairs[0].prompt, pairs[0].chosen) == pytest.approx(1.0)


def test_a_prompt_of_another_world_cannot_be_judged() -> None:
    with pytest.raises(DataError, match="is no request of the tiny world"):
        WorldPreference().score([RewardSample("what is 3+5?", said("8"))])


def test_stuffing_an_answer_does_not_pay() -> None:
    generator, helpful = random.Random(0), [query for query in queries() if query.kind == "helpful"]
    everything = ", ".join({query.answer for query in helpful})
    for query in generator.sample(helpful, 20):
        assert preference_score(query.question, said(f"{everything}, {polite(query)}")) == 0.0
