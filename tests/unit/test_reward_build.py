"""From a reward term to a reward, and the contract of a call, in this process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from r1mega.config import RewardTerm
from r1mega.errors import ConfigError, PluginError
from r1mega.rewards.build import build_reward, checked_scores
from r1mega.types import RewardSample, Score

SAMPLES = [RewardSample("q", "a"), RewardSample("q", "b")]


def test_settings_reach_the_plugin() -> None:
    open_think = build_reward("format", RewardTerm("format", settings={"think_in_prompt": True}))
    assert checked_scores(open_think, [RewardSample("q", "a</think><answer>b</answer>")])[0].value == 1


@pytest.mark.parametrize(("term", "kind", "says"), [
    (RewardTerm("acuracy"), PluginError, "Did you mean 'accuracy'"),
    (RewardTerm("accuracy", settings={"extrct": "boxed"}), ConfigError, r"reward\.terms\.a\.settings\.extrct.*Did you mean 'extract'"),
    (RewardTerm("accuracy", settings={"extract": "box"}), ConfigError, r"reward\.terms\.a\.settings: extract must be one of"),
])
def test_mistakes_are_named(term: RewardTerm, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        build_reward("a", term)


@pytest.mark.parametrize(("returned", "says"), [
    (None, "must return a list of Score, got NoneType"),
    ("ab", "must return a list of Score, got str"),
    ([1.0, 0.0], "got a float in it"),
    ([Score(1.0)], "returned 1 scores for 2 samples"),
    ([], "returned 0 scores for 2 samples"),
])
def test_a_broken_contract_is_an_error(returned: Any, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        checked_scores(SimpleNamespace(version="1", score=lambda _: returned), SAMPLES)  # type: ignore[arg-type]
