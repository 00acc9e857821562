"""Every bad input through the real command line: the exit code, one line that names the key, file or line and the way out, no traceback.

The cases are those of `tests/soak/bad_input_table.py`, which prints them as a table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "soak"))
from bad_input_table import CASES, Case, Place, SkipCaseError, make_base

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_bad_input(case: Case, base: Path, tmp_path: Path) -> None:
    try:
        outcome = case.attempt(Place(tmp_path, base))
    except SkipCaseError as error:
        pytest.skip(str(error))
    print(f"{case.name}: exit {outcome.code}: {outcome.line}")
    assert outcome.code == case.code, outcome.said
    assert "Traceback" not in outcome.said
    if case.code:
        said = [line for line in outcome.said.splitlines() if line.startswith("r1mega: ")]
        assert len(said) == 1, f"expected one line that says what is wrong: {outcome.said}"
        missing = [word for word in case.names if word not in said[0]]
        assert not missing, f"{missing} not in: {said[0]}"


def test_masked_failures_are_counted(base: Path, tmp_path: Path) -> None:
    """A reward that hangs on some samples, under on_failure=mask: those samples count nowhere, and the metrics say how many they were."""
    case = next(case for case in CASES if case.name == "reward hangs, on_failure=mask")
    outcome = case.attempt(Place(tmp_path, base))
    assert outcome.code == 0, outcome.said
    lines = [json.loads(line) for line in (outcome.folder / "stages/zero/current/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert sum(line["reward_failed"] for line in lines) > 0
    for line in lines:
        assert line["samples_failed"] == line["reward_failed"] <= line["samples"]


def test_a_malformed_line_is_reported_before_anything_is_trained(base: Path, tmp_path: Path) -> None:
    del base
    case = next(case for case in CASES if case.name == "malformed line")
    outcome = case.attempt(Place(tmp_path, tmp_path))
    assert outcome.code == 2
    assert not list(outcome.folder.glob("stages/*/*/metrics.jsonl")), "a step was trained before the data was read"
    assert not list(outcome.folder.glob("stages/zero"))
