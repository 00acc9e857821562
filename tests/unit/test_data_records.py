"""Rows on disk: what is written comes back, and every malformed row is one error with file and line."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1mega.data.records import (
    JudgedResponse,
    PreferencePair,
    SampleRecord,
    SampleRows,
    read_preferences,
    read_prompts,
    read_samples,
    write_preferences,
    write_prompts,
    write_samples,
)
from r1mega.errors import DataError
from r1mega.types import Prompt

HARD = ["", "two\nlines\r\n", "\u2028\u2029\x85\x0b", "🙂 中文", "\ud800 alone", '{"quoted": "\\n"}', "\x00"]
SAMPLES = [SampleRecord(id=str(i), prompt=f"question {text}", reasoning=text, response=f"so {text}", answer=None if i % 2 else text,
                        metadata={"n": [i, {"deep": text}]}, provenance={"rewards": {"accuracy": 1.0}}) for i, text in enumerate(HARD)]
GOOD = {"id": "a", "prompt": "q", "reasoning": "", "response": "r"}


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    prompts = [Prompt(id=str(i), question=text, domain="logic", metadata={"k": 1}) for i, text in enumerate(HARD)]
    pairs = [PreferencePair("1", "q", "a", "b", margin=1.25, judgements=4)]
    judged = [JudgedResponse("1", "q", "no", safe=True)]
    write_prompts(tmp_path / "p", prompts)
    write_samples(tmp_path / "s", SAMPLES)
    write_preferences(tmp_path / "j", pairs, judged)
    assert read_prompts(tmp_path / "p") == prompts
    assert read_samples(tmp_path / "s") == SAMPLES
    assert read_preferences(tmp_path / "j") == (pairs, judged)


def test_rows_are_read_in_any_order_from_disk(tmp_path: Path) -> None:
    write_samples(tmp_path, SAMPLES)
    rows = SampleRows(tmp_path)
    places = list(range(len(SAMPLES))) * 2
    random.Random(0).shuffle(places)
    assert [rows[i] for i in places] == [SAMPLES[i] for i in places]
    assert (len(rows), rows[-1], rows[1:3], list(rows)) == (len(SAMPLES), SAMPLES[-1], SAMPLES[1:3], SAMPLES)
    with pytest.raises(IndexError):
        rows[len(SAMPLES)]


def test_blank_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text(f"\n{json.dumps(GOOD)}\n  \n{json.dumps(GOOD | {'id': 'b'})}")
    rows = SampleRows(tmp_path)
    assert [row.id for row in rows] == [row.id for row in read_samples(tmp_path)] == ["a", "b"]
    assert rows.where(1).endswith("samples.jsonl:4")


def test_the_digest_speaks_of_the_rows_alone(tmp_path: Path) -> None:
    for name, samples in (("a", SAMPLES), ("b", SAMPLES), ("c", SAMPLES[::-1])):
        write_samples(tmp_path / name, samples)
    a, b, c = ((tmp_path / name / "content.sha256").read_text() for name in "abc")
    assert a == b != c
    assert a.strip() == hashlib.sha256(b"samples.jsonl\0" + (tmp_path / "a/samples.jsonl").read_bytes()).hexdigest()


def test_numpy_values_are_written_as_numbers(tmp_path: Path) -> None:
    write_samples(tmp_path, [SampleRecord("1", "q", "", "r", metadata={"reward": np.float32(0.5), "lengths": np.arange(2)})])
    assert read_samples(tmp_path)[0].metadata == {"reward": 0.5, "lengths": [0, 1]}


@pytest.mark.parametrize(("line", "expected"), [
    ("{", "not valid JSON"),
    ("[1]", "expected an object, got list"),
    (b'{"id": "\xff"}', "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    (json.dumps({name: value for name, value in GOOD.items() if name != "response"}), "field 'response' is missing"),
    (json.dumps(GOOD | {"reasonin": ""}), "field 'reasonin' is unknown. Did you mean 'reasoning'?"),
    (json.dumps(GOOD | {"reasoning": None}), "field 'reasoning' must be text, got null"),
    (json.dumps(GOOD | {"answer": 3}), "field 'answer' must be text or null, got 3"),
    (json.dumps(GOOD | {"metadata": []}), "field 'metadata' must be an object"),
    (json.dumps(GOOD), "id 'a' is also at"),
])
def test_a_malformed_row_is_one_error_with_file_and_line(tmp_path: Path, line: Any, expected: str) -> None:
    line = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "samples.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(DataError) as error:
        read_samples(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'samples.jsonl'}:2: ")
    assert expected in str(error.value)
    if "also at" not in expected:
        with pytest.raises(DataError, match=r"samples\.jsonl:2: "):
            SampleRows(tmp_path)[1]


@pytest.mark.parametrize(("change", "expected"), [
    ({"margin": "2"}, "'margin' must be a finite number"), ({"margin": float("nan")}, "'margin' must be a finite number"),
    ({"judgements": True}, "'judgements' must be a whole number"), ({"margin": 1}, ""),
])
def test_numbers_are_checked(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"id": "1", "prompt": "q", "chosen": "a", "rejected": "b"} | change))
    (tmp_path / "judged.jsonl").write_text("")
    if not expected:
        assert read_preferences(tmp_path)[0][0].margin == 1
        return
    with pytest.raises(DataError, match=expected):
        read_preferences(tmp_path)


def test_two_rows_with_one_id_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"samples\.jsonl:2: id '1' is also at samples\.jsonl:1"):
        write_samples(tmp_path, [SampleRecord("1", "q", "", "r")] * 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("read", [read_samples, SampleRows])
def test_an_absent_file_is_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(DataError, match=r"samples\.jsonl: no such file"):
        read(tmp_path)
