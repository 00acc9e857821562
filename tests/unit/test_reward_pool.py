"""The pool against rewards that hang, crash, lie and print: real processes, an outside plugin."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from r1mega.config import RewardConfig, RewardTerm
from r1mega.errors import ConfigError, PluginError, RewardError
from r1mega.rewards.build import build_reward, checked_scores
from r1mega.rewards.pool import RewardPool, Verdict
from r1mega.types import RewardSample

HOSTILE = {"hostile": RewardTerm("hostile")}
RULES = {"accuracy": RewardTerm("accuracy", weight=2.0), "format": RewardTerm("format", weight=0.5)}


@pytest.fixture(scope="module", autouse=True)
def _outside_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install hostile_rewards.py as pip would, for the workers to discover."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(Path(__file__).parent / "hostile_rewards.py", folder)
    info = folder / "hostile_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile-rewards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[r1mega]\nhostile = hostile_rewards\n")
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(HOSTILE, timeout_s=0.6, memory_mb=2048, batch_size=8, max_failure_rate=1.0) as pool:
        yield pool


def score(pool: RewardPool, completions: list[str]) -> list[Verdict]:
    for index, completion in enumerate(completions):
        pool.submit(str(index), RewardSample("q", completion))
    return pool.finish()


@pytest.mark.parametrize(("bad", "says"), [
    ("hang in C", r"no result within 0\.6 s"),
    ("exit", r"died: exit code 3"),
    ("segfault", r"died: signal SIGSEGV"),
    ("sys.exit", r"SystemExit: 5"),
    ("raise", r"ZeroDivisionError: division by zero \(hostile_rewards\.py:\d+\)"),
    ("nan", r"returned the value nan"),
    ("infinite", r"a score must be finite, got inf"),
    ("type", r"got a float in it"),
    ("count", r"returned 0 scores for 1 samples"),
    ("memory", r"MemoryError"),
])
def test_one_bad_sample_is_masked_and_its_neighbours_are_not(pool: RewardPool, bad: str, says: str) -> None:
    verdicts = score(pool, ["a", bad, "ccc"])
    assert [v.key for v in verdicts] == ["0", "1", "2"]
    assert [v.valid for v in verdicts] == [True, False, True]
    assert [verdicts[0].value, verdicts[2].value] == [1.0, 3.0]
    assert math.isnan(verdicts[1].value)
    assert math.isnan(verdicts[1].parts["hostile"])
    assert verdicts[1].error.startswith("reward 'hostile': ")
    assert re.search(says, verdicts[1].error), verdicts[1].error


def test_what_a_reward_prints_does_not_reach_the_protocol(pool: RewardPool) -> None:
    assert [v.value for v in score(pool, ["print", "aa", "print"])] == [1.0, 2.0, 1.0]


def test_unicode_and_long_texts_come_through(pool: RewardPool) -> None:
    verdicts = score(pool, ["日本語", "\ud800", "x" * 100_000, "unicode"])
    assert [v.value for v in verdicts] == [3.0, 1.0, 100_000.0, 1.0]
    assert verdicts[3].explanations == {"hostile": "日本語 \ud800 🙂"}


def test_a_rewards_children_die_with_its_worker(pool: RewardPool) -> None:
    child = int(score(pool, ["child"])[0].value)
    assert psutil.pid_exists(child)
    score(pool, ["exit"])
    assert gone([child]) == []


def test_counters(pool: RewardPool) -> None:
    pool.stats()
    verdicts = score(pool, ["a", "hang", "b", "raise"])
    assert [v.valid for v in verdicts] == [True, False, True, False]
    stats = pool.stats()
    assert stats["hostile/timeouts"] == 2  # the call of four, then the sample alone
    assert stats["hostile/errors"] == 1
    assert stats["hostile/retries"] == 4
    assert stats["hostile/calls"] == 5
    assert stats["hostile/restarts"] == 2
    assert stats["hostile/busy_seconds"] >= 1.2
    assert not any(pool.stats().values())


def test_no_torch_in_a_worker_with_every_built_in_reward() -> None:
    terms = {**HOSTILE, **RULES, "reasoning_gym": RewardTerm("reasoning_gym")}
    with RewardPool(terms, max_failure_rate=1.0) as pool:
        assert score(pool, ["torch"])[0].parts["hostile"] == 0.0


def test_the_pool_scores_what_a_plain_loop_scores() -> None:
    samples = [RewardSample("3+4", f"<think>{'t' * (i % 3)}</think><answer>{answer}</answer>", "7")
               for i, answer in enumerate(["7", "7.0", r"\frac{14}{2}", "8", "x", "seven", "$7$", "7 or 8", "7 apples", ""] * 6)]
    serial = {key: checked_scores(build_reward(key, term), samples) for key, term in RULES.items()}
    with RewardPool(RULES, workers=2, batch_size=7) as pool:
        handed_out: list[Verdict] = []
        for index, sample in enumerate(samples):
            pool.submit(str(index), sample)
            handed_out += pool.poll()
        handed_out += pool.finish()
    verdicts = {verdict.key: verdict for verdict in handed_out}
    assert len(handed_out) == len(verdicts) == len(samples)
    for index in range(len(samples)):
        verdict = verdicts[str(index)]
        assert verdict.parts == {key: serial[key][index].value for key in RULES}
        assert verdict.value == 2.0 * verdict.parts["accuracy"] + 0.5 * verdict.parts["format"]


def test_deadlines_hold_while_the_caller_is_away() -> None:
    with RewardPool(HOSTILE, timeout_s=0.2, max_failure_rate=1.0, retries=0) as pool:
        pool.submit("bad", RewardSample("q", "hang"))
        pool.poll()
        deadline = time.monotonic() + 20
        while not pool.stats()["hostile/timeouts"]:  # looks, but neither polls nor waits in the pool
            assert time.monotonic() < deadline, "the deadline was not enforced"
            time.sleep(0.02)
        assert [v.valid for v in pool.poll()] == [False]


def test_stop_names_the_reward_the_cause_and_the_sample() -> None:
    with RewardPool(HOSTILE, on_failure="stop") as pool:
        with pytest.raises(RewardError, match=r"reward 'hostile' failed on sample '1': ZeroDivisionError.*completion 'raise'"):
            score(pool, ["a", "raise"])
        with pytest.raises(RewardError, match="ZeroDivisionError"):  # and it stays that way
            pool.poll()


def test_too_many_failures_stop_the_run() -> None:
    with RewardPool(HOSTILE, max_failure_rate=0.25) as pool:
        assert len(score(pool, ["a", "b", "c", "raise"])) == 4
        with pytest.raises(RewardError, match=r"2 of 4 samples could not be scored, more than reward\.max_failure_rate=0\.25"):
            score(pool, ["a", "b", "raise", "raise"])


@pytest.mark.parametrize(("terms", "kind", "says"), [
    ({"bad": RewardTerm("unbuildable")}, PluginError,
     r"reward 'bad': plugin 'unbuildable' of 'hostile \(hostile-rewards 1\.0\)' cannot be built: ZeroDivisionError"),
    ({"bad": RewardTerm("unbuildable", settings={"how": "exit"})}, RewardError, r"died at start-up while building reward 'bad': exit code 3"),
    ({"bad": RewardTerm("unbuildable", settings={"how": "type"})}, PluginError, r"made a float without a method 'score"),
    ({"bad": RewardTerm("hostle")}, PluginError, r"no rewards plugin is called 'hostle'\. Did you mean 'hostile'"),
    ({"bad": RewardTerm("hostile", settings={"x": 1})}, ConfigError, r"terms\.bad\.settings: plugin 'hostile' takes no settings, got x"),
])
def test_a_reward_that_cannot_be_built_is_named(terms: Mapping[str, RewardTerm], kind: type[Exception], says: str) -> None:
    with RewardPool(terms) as pool, pytest.raises(kind, match=says):
        score(pool, ["a"])


@pytest.mark.parametrize(("values", "says"), [
    ({}, r"reward\.terms is empty"),
    ({"terms": HOSTILE, "workers": 0}, r"reward\.workers must be at least 1, got 0"),
    ({"terms": HOSTILE, "timeout_s": 0.0}, r"reward\.timeout_s must be above 0"),
])
def test_impossible_settings_are_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RewardPool.from_config(RewardConfig(**values))


def test_a_key_may_be_under_way_once() -> None:
    with RewardPool(HOSTILE) as pool:
        pool.submit("a", RewardSample("q", "x"))
        with pytest.raises(ValueError, match="submitted twice"):
            pool.submit("a", RewardSample("q", "x"))


def test_close_ends_everything_in_the_middle_of_a_call() -> None:
    pool = RewardPool(HOSTILE, workers=2, batch_size=1)
    score(pool, ["a", "b"])
    deadline = time.monotonic() + 20  # the second worker may still be starting: one can score both
    while len(processes := family(pool.pids())) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(processes) >= 4  # two keepers, two scorers
    for index in range(2):
        pool.submit(str(index), RewardSample("q", "child, then hang"))
    time.sleep(0.3)
    processes |= family(pool.pids())
    start = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - start < 5
    assert gone(processes) == []


def family(pids: list[int]) -> set[int]:
    return set(pids) | {child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)}


def gone(pids: Any, within_s: float = 5.0) -> list[int]:
    """Those of the processes that still run after a while."""
    deadline = time.monotonic() + within_s
    while (left := [pid for pid in pids if runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def runs(pid: int) -> bool:
    try:
        return pid != os.getpid() and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_overhead_is_far_below_a_millisecond_a_sample() -> None:
    samples = [RewardSample("q", "x" * 300) for _ in range(1000)]
    with RewardPool(HOSTILE) as pool:
        score(pool, ["warm up"])
        start = time.perf_counter()
        for index, sample in enumerate(samples):
            pool.submit(str(index), sample)
            pool.poll()
        pool.finish()
        per_sample = (time.perf_counter() - start) / len(samples)
    print(f"pool overhead: {per_sample * 1e6:.0f} microseconds a sample")
    assert per_sample < 1e-3
