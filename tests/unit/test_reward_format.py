"""The format reward on every way to break the format."""

from __future__ import annotations

from typing import Any

import pytest
from r1mega_plugins.rewards.format import Format, FormatConfig

from r1mega.types import RewardSample


def score(completion: str, **settings: Any) -> tuple[float, str]:
    result = Format(FormatConfig(**settings)).score([RewardSample("q", completion)])[0]
    return result.value, result.explanation


@pytest.mark.parametrize("completion", [
    "<think>a</think><answer>b</answer>",
    "  <think>\na\n</think>\n\n<answer> b </answer>\n",
    "<think>日本語</think><answer>🙂</answer>",
    "<think>a < b > c</think><answer>1 < 2</answer>",
    "<think>" + "a" * 100_000 + "</think><answer>b</answer>",
])
def test_kept(completion: str) -> None:
    assert score(completion) == (1.0, "")


@pytest.mark.parametrize(("completion", "why"), [
    ("", "<think> occurs 0 times"),
    ("<answer>b</answer>", "<think> occurs 0 times"),
    ("<think>a</think>", "<answer> occurs 0 times"),
    ("<think>a</think><answer>b", "</answer> occurs 0 times"),
    ("<think>a<think>b</think><answer>c</answer>", "<think> occurs 2 times"),
    ("<think>a</think><answer>b</answer><answer>c</answer>", "<answer> occurs 2 times"),
    ("<answer>b</answer><think>a</think>", "the tags are out of order"),
    ("<think>a<answer>b</answer></think>", "the tags are out of order"),
    ("x<think>a</think><answer>b</answer>", "text before <think>"),
    ("<think>a</think>x<answer>b</answer>", "text between </think> and <answer>"),
    ("<think>a</think><answer>b</answer>x", "text after </answer>"),
    ("<think> </think><answer>b</answer>", "the reasoning is empty"),
    ("<think>a</think><answer>\n</answer>", "the answer is empty"),
    ("<Think>a</Think><answer>b</answer>", "<think> occurs 0 times"),
])
def test_broken(completion: str, why: str) -> None:
    assert score(completion) == (0.0, why)


def test_prefix_where_allowed() -> None:
    assert score("Sure: <think>a</think><answer>b</answer>", allow_prefix=True)[0] == 1
    assert score("Sure: <think>a</think><answer>b</answer> x", allow_prefix=True)[0] == 0


def test_think_opened_by_the_template() -> None:
    assert score("a</think><answer>b</answer>", think_in_prompt=True)[0] == 1
    assert score("<think>a</think><answer>b</answer>", think_in_prompt=True)[0] == 0
    assert score("</think><answer>b</answer>", think_in_prompt=True) == (0.0, "the reasoning is empty")


def test_an_empty_block_is_allowed_where_asked_for() -> None:
    greeting = "<think></think><answer>hello</answer>"
    assert score(greeting)[0] == 0
    assert score(greeting, empty_reasoning=True)[0] == 1
    assert score("<answer>hello</answer>", empty_reasoning=True)[0] == 0, "no block at all is no empty block"


@pytest.mark.parametrize(("completion", "why"), [
    ("<think>\na\n</think>\n\nIt is \\boxed{7}.", ""),
    ("<think></think>hello", "the reasoning is empty"),
    ("It is 7.", "<think> occurs 0 times"),
    ("<think>a", "</think> occurs 0 times"),
    ("<think>a</think> \n", "the answer is empty"),
    ("<think>a</think>b</think>c", "</think> occurs 2 times"),
    ("b<think>a</think>c", "text before <think>"),
    ("<think>a</think><answer>b</answer>", "there is an answer tag; the answer is what follows </think>"),
])
def test_a_plain_answer_after_the_reasoning(completion: str, why: str) -> None:
    assert score(completion, answer="text") == (0.0 if why else 1.0, why)


def test_an_unknown_answer_format_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of tag, text"):
        FormatConfig(answer="box")  # type: ignore[arg-type]
