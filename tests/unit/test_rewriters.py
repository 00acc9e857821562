"""The rule-based rewriter: tidy reasoning, a summary in words, and never another answer, by the accuracy reward's own reading."""

from __future__ import annotations

import dataclasses
import random

import pytest
from r1mega_plugins.rewards.accuracy import Accuracy, AccuracyConfig
from r1mega_plugins.rewriters.none import Unchanged
from r1mega_plugins.rewriters.rules import Rules, RulesConfig, stated_answer, tidy

from r1mega.data.chat import render_response, split_response
from r1mega.data.records import SampleRecord
from r1mega.errors import ConfigError
from r1mega.types import RewardSample

TAGS, BOX = "<think>{reasoning}</think><answer>{response}</answer>", "<think>\n{reasoning}\n</think>\n\n{response}"


def sample(response: str, answer: str | None = None, language: str = "en", reasoning: str = "7+5=12 c1 1+2+1=4") -> SampleRecord:
    return SampleRecord("s1", "17+25=", reasoning, response, answer=answer, language=language, provenance={"round": 0})


def rewritten(record: SampleRecord, config: RulesConfig | None = None) -> SampleRecord | None:
    return Rules(config or RulesConfig()).rewrite([record])[0]


@pytest.mark.parametrize(("response", "language", "summary"), [
    ("42", "en", "The answer is 42."), ("42.", "en", "The answer is 42."), ("-3/4", "en", "The answer is -3/4."), (" 42 ", "zh", "答案是42。"),
    ("(3+5)*2", "en", r"The answer is \boxed{(3+5)*2}."), ("B", "en", r"The answer is \boxed{B}."), ("x = 5", "en", r"The answer is \boxed{x = 5}."),
    (r"\boxed{\frac{1}{2}}", "en", r"The answer is \boxed{\frac{1}{2}}."), ("It is 42 apples", "de", "Die Antwort ist 42."),
    ("2x", "en", r"The answer is \boxed{2x}."), ("yes", "fr", r"La réponse est \boxed{yes}.")])
def test_a_bare_answer_gets_a_sentence_of_the_questions_language(response: str, language: str, summary: str) -> None:
    found = rewritten(sample(response, language=language))
    assert found is not None
    assert found.response == summary


@pytest.mark.parametrize("record", [
    sample("5 or 7"), sample(""), sample("a long sentence that ends nowhere in particular"), sample("42", language="xx"), sample(r"\boxed{"),
    sample("first\nsecond")])
def test_what_states_no_single_answer_is_not_rewritten(record: SampleRecord) -> None:
    assert rewritten(record) is None


def test_the_accuracy_reward_gives_the_rewritten_answer_what_it_gave_before() -> None:
    """Random answers of several kinds, right and wrong, in tags and in boxes: the score never changes."""
    rng = random.Random(0)
    kinds = [lambda: str(rng.randint(-99, 9999)), lambda: f"{rng.randint(1, 9)}/{rng.randint(2, 9)}", lambda: rng.choice("ABCD"),
             lambda: f"{rng.randint(0, 99)}.{rng.randint(1, 9)}", lambda: f"\\boxed{{{rng.randint(0, 99)}}}", lambda: rng.choice(["yes", "no", "knight"])]
    tags, box = Accuracy(AccuracyConfig(extract="answer_tag")), Accuracy(AccuracyConfig(extract="boxed"))
    scores = []
    for _ in range(200):
        response = rng.choice(kinds)()
        bare = response.removeprefix("\\boxed{").removesuffix("}")
        reference = bare if rng.random() < 0.5 else rng.choice(kinds)().removeprefix("\\boxed{").removesuffix("}")
        for language in ("en", "zh"):
            before = sample(response, reference, language)
            after = rewritten(before)
            assert after is not None, response
            boxed = rewritten(before, RulesConfig(boxed="always"))
            assert boxed is not None
            score = score_of(tags, before, TAGS)
            assert score_of(tags, after, TAGS) == score, (response, reference, after.response)
            assert score_of(box, boxed, BOX) == score, (response, reference, boxed.response)
            scores.append(score)
    assert 0 < sum(scores) < len(scores)


def score_of(reward: Accuracy, record: SampleRecord, template: str) -> float:
    text = render_response(template, record.reasoning, record.response)
    assert split_response(text) == (record.reasoning, record.response)
    return reward.score([RewardSample(record.prompt, text, record.answer)])[0].value


def test_a_summary_stays_and_is_boxed_on_demand() -> None:
    text = "Adding the ones gives twelve, so we carry one, and the total of both numbers is 42."
    kept, boxed = rewritten(sample(text)), rewritten(sample(text), RulesConfig(boxed="always"))
    assert kept is not None
    assert kept.response == text
    assert boxed is not None
    assert boxed.response == text + "\n\n\\boxed{42}"
    replaced = rewritten(sample(text), RulesConfig(keep_summary_words=0))
    assert replaced is not None
    assert replaced.response == "The answer is 42."


def test_reasoning_is_tidied_and_all_else_stays() -> None:
    record = sample("42", "42", reasoning="  First   we add. \nFirst we add.\n\n\n\nThen we carry.\r\n\nThen we carry.\nDone. ")
    found = rewritten(record)
    assert found is not None
    assert found.reasoning == "First we add.\n\nThen we carry.\n\nDone."
    assert dataclasses.replace(found, reasoning=record.reasoning, response=record.response) == record


def test_tidying_twice_changes_nothing() -> None:
    rng = random.Random(2)
    for _ in range(300):
        text = "".join(rng.choice(["a", "b b", " ", "\n", "\n\n", "\t", "a\na\n"]) for _ in range(20))
        assert tidy(tidy(text)) == tidy(text), repr(text)


def test_stated_answers() -> None:
    assert stated_answer("so 5 and again 5") == "5"
    assert stated_answer("1,234") == "1,234"
    assert stated_answer(r"from \boxed{1} to \boxed{2}") == "2"


def test_no_rewriter_leaves_samples_alone() -> None:
    assert list(Unchanged().rewrite([sample("42")])) == [sample("42")]


def test_a_wording_without_the_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rewriter\.summary\.en: expected \{answer\} once"):
        RulesConfig(summary={"en": "Done."})
