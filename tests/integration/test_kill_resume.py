"""kill -9 of a rank in generation and in training: the rerun ends bit-equal. The long version is `tests/soak/kill_rl.py`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "soak"))
from kill_rl import ENDED_WITHIN_S, trial, undisturbed
from shortened import Run, metrics

pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(sys.platform != "linux", reason="watches processes through /proc")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A run with its base stage done, and the undisturbed end."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


def test_undisturbed_run_trains(runs: tuple[Run, Run]) -> None:
    """Without this, two runs that do nothing would be bit-equal too."""
    steps = metrics(runs[1].stage("zero"))
    assert all(line["skipped"] == 0 and line["grad_norm"] > 0 for line in steps), steps
    assert steps[-1]["kl"] > 0, "the policy never left the reference"


@pytest.mark.parametrize(("aim", "victim"), [("generating", "rank 1"), ("training", "rank 0")])
def test_killed_rank_is_named_and_the_rerun_is_bit_equal(runs: tuple[Run, Run], tmp_path: Path, aim: str, victim: str) -> None:
    base, reference = runs
    done = trial(base.copy(tmp_path / "run"), reference, aim, victim, random.Random(aim))
    assert done.phase == aim, "the kill did not happen"
    assert not done.problems, "\n".join(done.problems)
    assert done.ended_s <= ENDED_WITHIN_S
    assert f"{victim} of 2 was killed by signal 9" in done.message
