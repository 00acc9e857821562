"""The language-consistency reward: the paper's ratio over the reasoning alone, and the terms' view of a completion."""

from __future__ import annotations

import pytest

from r1mega.config import RewardTerm
from r1mega.errors import ConfigError
from r1mega.rewards.build import build_reward, checked_scores, seen
from r1mega.types import RewardSample


def share(completion: str, language: str = "en", starts_in_reasoning: bool = False, **settings: float) -> float:
    reward = build_reward("language_consistency", RewardTerm("language_consistency", settings=settings))
    sample = RewardSample("q", completion, language=language, starts_in_reasoning=starts_in_reasoning)
    return checked_scores(reward, [sample])[0].value


@pytest.mark.parametrize(("completion", "language", "expected"), [
    ("<think>so we add the two numbers</think><answer>5</answer>", "en", 1.0),
    ("<think>so we add the two numbers</think><answer>我们得到五</answer>", "en", 1.0),  # the answer's language is not asked about
    ("<think>我们把它相加</think><answer>the sum is five</answer>", "zh", 1.0),
    ("<think>我们把它相加</think><answer>5</answer>", "en", 0.0),
    ("<think>first we add 所以答案</think><answer>5</answer>", "en", 3 / 7),  # three English words, four Han characters
    ("<think>first we add 所以答案</think><answer>5</answer>", "zh", 4 / 7),
    ("<think>first we add 所以答案", "en", 3 / 7),  # cut off in the reasoning
])
def test_the_share_of_target_words_in_the_reasoning(completion: str, language: str, expected: float) -> None:
    assert share(completion, language) == pytest.approx(expected)


def test_what_has_no_words_or_no_reasoning_is_a_setting() -> None:
    assert share("<think>7+5=12</think><answer>12</answer>") == 1.0
    assert share("<think>7+5=12</think><answer>12</answer>", without_words=0.5) == 0.5
    assert share("the answer is 12") == share("<think></think><answer>the sum is 12</answer>") == 0.0
    assert share("the answer is 12", without_reasoning=1.0) == 1.0
    with pytest.raises(ConfigError, match="without_words=2: must be between 0 and 1"):
        share("", without_words=2)


def test_a_prompt_that_opens_the_reasoning() -> None:
    assert share("we add 所以</think>done", starts_in_reasoning=True) == pytest.approx(2 / 4)
    assert share("we add 所以", starts_in_reasoning=True) == pytest.approx(2 / 4)
    assert share("we add 所以") == 0.0  # without it, this is an answer without reasoning


def test_an_unknown_target_is_an_error_and_no_score() -> None:
    with pytest.raises(ConfigError, match="language 'xx' is unknown"):
        share("<think>we add</think>", "xx")


@pytest.mark.parametrize(("scope", "expected"), [
    ("response", "<think>why</think><answer>so</answer>"), ("reasoning", "why"), ("summary", "so")])
def test_a_term_sees_the_part_its_scope_names(scope: str, expected: str) -> None:
    sample = RewardSample("q", "<think>why</think><answer>so</answer>", "a", metadata={"k": 1})
    cut = seen(sample, RewardTerm("format", scope=scope))  # type: ignore[arg-type]
    assert (cut.completion, cut.prompt, cut.answer, cut.metadata) == (expected, "q", "a", {"k": 1})


def test_a_completion_cut_in_its_reasoning_has_no_summary() -> None:
    assert seen(RewardSample("q", "still thinking", starts_in_reasoning=True), RewardTerm("format", scope="summary")).completion == ""
