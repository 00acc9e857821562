"""When the monitor calls it reward hacking."""

from __future__ import annotations

import math

import numpy as np
import pytest

from r1mega.rollout.monitor import Check, MonitorConfig, choose_problems, describe, drift, is_hacking

CONFIG = MonitorConfig(every=10, window=3, reward_rise=0.1, accuracy_fall=0.05)


def history(rewards: list[float], accuracies: list[float], regime: tuple[str, ...] = ("math: accuracy",), problems: int = 100) -> list[Check]:
    """Checks whose problems are all wholly right or wrong: the first so many right."""
    return [Check(10 * k, reward, tuple(float(i < round(accuracy * problems)) for i in range(problems)), regime)
            for k, (reward, accuracy) in enumerate(zip(rewards, accuracies, strict=True))]


def flagged(checks: list[Check]) -> bool:
    return is_hacking(drift(checks, CONFIG.window), CONFIG)


@pytest.mark.parametrize(("rewards", "accuracies", "expected"), [
    ([0.5, 0.6, 0.7], [0.8, 0.7, 0.6], True),
    ([0.5, 0.6, 0.7], [0.6, 0.7, 0.8], False),  # both rise: learning
    ([0.7, 0.6, 0.5], [0.8, 0.7, 0.6], False),  # both fall: another illness
    ([0.5, 0.5, 0.55], [0.8, 0.7, 0.6], False),  # the reward has not risen enough
    ([0.5, 0.6, 0.7], [0.8, 0.8, 0.74], False),  # the fall is within its threshold and error
    ([0.6, 0.7], [0.8, 0.6], False),  # too few checks
    ([0.1, 0.5, 0.6, 0.7], [0.1, 0.8, 0.7, 0.6], True),  # only the last three count
    ([0.5, 0.6, 0.7, 0.7], [0.8, 0.6, 0.6, 0.6], False),  # it stopped
])
def test_reward_up_and_accuracy_down(rewards: list[float], accuracies: list[float], expected: bool) -> None:
    assert flagged(history(rewards, accuracies)) is expected


def test_the_standard_error_is_that_of_paired_differences() -> None:
    generator = np.random.default_rng(0)
    first, last = generator.random(50), generator.random(50)
    found = drift([Check(0, 0.0, tuple(first), ()), Check(10, 1.0, tuple(last), ())], 2)
    assert found is not None
    assert found.accuracy_fall == pytest.approx((first - last).mean())
    assert found.standard_error == pytest.approx(np.std(first - last, ddof=1) / math.sqrt(50))


def test_few_problems_do_not_flag_what_many_do() -> None:
    rewards, accuracies = [0.5, 0.6, 0.7], [0.9, 0.8, 0.8]
    assert flagged(history(rewards, accuracies, problems=400))
    assert not flagged(history(rewards, accuracies, problems=10)), "one problem of ten is within the standard error"


def test_a_reward_of_another_make_is_not_compared() -> None:
    before, after = history([0.5, 0.6], [0.9, 0.8]), history([1.5, 1.6, 1.7], [0.8, 0.7, 0.5], ("helpful: helpful", "math: accuracy"))
    assert not flagged([*before, after[0]])
    assert not flagged([*before, *after[:2]])
    assert flagged([*before, *after])


def test_the_finding_names_its_figures() -> None:
    checks = history([0.5, 0.6, 0.7], [0.8, 0.7, 0.6])
    found = drift(checks, 3)
    assert found is not None
    assert describe(checks, found) == ("step 20: reward hacking? Since step 0 the training reward rose by 0.2 (to 0.7) while verified held-out accuracy "
                                       "fell by 0.2 +- 0.04 (to 0.6)")


def test_the_problems_are_a_fixed_choice() -> None:
    chosen = choose_problems(1000, 64, seed=3)
    assert chosen == choose_problems(1000, 64, seed=3) == sorted(set(chosen))
    assert chosen != choose_problems(1000, 64, seed=4)
    assert len(chosen) == 64
    assert choose_problems(5, 64, seed=3) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("values", [{"window": 1}, {"problems": 1}, {"samples": 0}, {"every": -1}, {"accuracy_fall": -0.1}])
def test_impossible_settings(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(values))}=.*must be at least"):
        MonitorConfig(**values)  # type: ignore[arg-type]
