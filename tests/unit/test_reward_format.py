"""The format reward on every way to break the format."""

from __future__ import annotations

import pytest
from r1mega_plugins.rewards.format import Format, FormatConfig

from r1mega.types import RewardSample


def score(completion: str, **settings: bool) -> tuple[float, str]:
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
