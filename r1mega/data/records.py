"""Rows on disk: a `PromptSet`, a `SampleSet` and a `PreferenceSet` are folders with one JSON Lines file and a digest of its rows.

    PromptSet/      prompts.jsonl  content.sha256
    SampleSet/      samples.jsonl  content.sha256  [samples.parquet  drops.json  README.md (the dataset card)]
    PreferenceSet/  pairs.jsonl and judged.jsonl (either may be empty)  content.sha256

The digest covers the rows alone, in order: no times, no paths. Every reader checks what it reads (JSON, fields, their types, repeated ids) and names
file and line; lines that are blank are passed over. `Rows` reads a set that is larger than memory, row by row.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from r1mega.errors import DataError, nearest
from r1mega.recipe import files
from r1mega.types import Prompt

Record = TypeVar("Record", Prompt, "SampleRecord", "PreferencePair", "JudgedResponse")
SAMPLES, PAIRS, JUDGED = "samples.jsonl", "pairs.jsonl", "judged.jsonl"


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One answered prompt to learn from, with where it came from.

    What the model is to say is `reasoning` (empty for a trivial query) and `response`, the summary or answer a reader sees; `chat.render_response`
    joins them. `provenance` holds what is known of the maker: `checkpoint` (fingerprint) or `model` (its name on the server that was sampled),
    `prompt_id`, `round`, `sample`, `rewards` (name -> value), `reward_versions`, `filters` (names passed), `rewriter`.
    """

    id: str
    prompt: str  # the question, without the template
    reasoning: str
    response: str
    answer: str | None = None  # the reference, where there is one
    domain: str = "math"
    language: str = "en"
    task: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two responses to one prompt, the first preferred: what the helpful reward model learns from (R1_RECIPE 2.6).

    `margin` is the judge's mean preference for `chosen` over `judgements` verdicts with A and B in random order, from -2 (B>>A) to 2 (A>>B).
    """

    id: str
    prompt: str
    chosen: str  # whole responses, reasoning included
    rejected: str
    domain: str = "helpful"
    language: str = "en"
    margin: float = 2.0
    judgements: int = 1
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JudgedResponse:
    """One response with a verdict: what the safety reward model learns from, point by point."""

    id: str
    prompt: str
    response: str  # whole, reasoning included
    safe: bool
    domain: str = "safety"
    language: str = "en"
    provenance: Mapping[str, Any] = field(default_factory=dict)


def write_prompts(folder: Path, prompts: Iterable[Prompt]) -> None:
    """Write a `PromptSet`."""
    _write(folder, {"prompts.jsonl": prompts})


def read_prompts(folder: Path) -> list[Prompt]:
    """The prompts of a `PromptSet`, in order. Raises `DataError` with file and line."""
    return _read(folder / "prompts.jsonl", Prompt)


def write_samples(folder: Path, samples: Iterable[SampleRecord], before_rename: Callable[[], None] = lambda: None) -> None:
    """Write a `SampleSet`'s rows, one at a time: in memory are their ids alone. Raises `DataError` when two rows share an id."""
    _write(folder, {SAMPLES: samples}, before_rename)


def read_samples(folder: Path) -> list[SampleRecord]:
    """The rows of a `SampleSet`, in order. Raises `DataError` with file and line."""
    return _read(folder / SAMPLES, SampleRecord)


def write_preferences(folder: Path, pairs: Iterable[PreferencePair], judged: Iterable[JudgedResponse]) -> None:
    """Write a `PreferenceSet`."""
    _write(folder, {PAIRS: pairs, JUDGED: judged})


def read_preferences(folder: Path) -> tuple[list[PreferencePair], list[JudgedResponse]]:
    """The pairs and the judged responses of a `PreferenceSet`."""
    return _read(folder / PAIRS, PreferencePair), _read(folder / JUDGED, JudgedResponse)


class Rows(Sequence[Record]):
    """The rows of a file, each read and checked when it is asked for; only where the lines begin is in memory.

    For training sets: 800,000 samples of the recipe's length are 15 GB of text. Repeated ids are not looked for.
    """

    def __init__(self, path: Path, kind: type[Record]) -> None:
        """Find the lines. Raises `DataError` where there is no such file."""
        self.path = path
        self._kind: type[Record] = kind
        if not path.is_file():
            raise _no_file(path, kind)
        self._file = path.open("rb")
        self._lines = np.array([(start, number) for start, number, line in _lines(self._file) if line.strip()], np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._lines)

    def where(self, index: int) -> str:
        """`file:line` of a row, for messages."""
        return f"{self.path}:{self._lines[index][1]}"

    @typing.overload
    def __getitem__(self, index: int) -> Record: ...

    @typing.overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        self._file.seek(int(self._lines[index][0]))
        return _parse(self._file.readline(), self.where(index), self._kind)


class SampleRows(Rows[SampleRecord]):
    """The rows of a `SampleSet`."""

    def __init__(self, folder: Path) -> None:
        """See `Rows`."""
        super().__init__(folder / SAMPLES, SampleRecord)


def _write(folder: Path, tables: Mapping[str, Iterable[Any]], before_rename: Callable[[], None] = lambda: None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "content.sha256").unlink(missing_ok=True)  # it would speak of other rows until the end
    digest = hashlib.sha256()
    for name, rows in tables.items():
        digest.update(name.encode() + b"\0")
        files.write_parts(folder / name, _digested(name, rows, digest), before_rename)
    files.write_text(folder / "content.sha256", digest.hexdigest() + "\n")


def _digested(name: str, rows: Iterable[Any], digest: Any) -> Iterator[bytes]:
    for row in distinct_rows((f"{name}:{number}", row) for number, row in enumerate(rows, 1)):
        text = json.dumps(_plain(row), ensure_ascii=False) + "\n"
        line = text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes its own JSON escape
        digest.update(line)
        yield line


def _plain(row: Any) -> dict[str, Any]:
    return {item.name: files.plain(getattr(row, item.name)) for item in dataclasses.fields(row)}


def distinct_rows(rows: Iterable[tuple[str, Record]]) -> Iterator[Record]:
    """The rows of (where, row) pairs. Raises `DataError` at the first id that was there before."""
    first: dict[str, str] = {}
    for where, row in rows:
        if row.id in first:
            raise DataError(f"{where}: id '{row.id}' is also at {first[row.id]}; the ids of one set must differ")
        first[row.id] = where
        yield row


def read_rows(path: Path, kind: type[Record]) -> Iterator[tuple[str, Record]]:
    """(file:line, row) of every line that is not blank, one at a time. Raises `DataError` with file and line."""
    if not path.is_file():
        raise _no_file(path, kind)
    with path.open("rb") as file:
        for _, number, line in _lines(file):
            if line.strip():
                where = f"{path}:{number}"
                yield where, _parse(line, where, kind)


def _read(path: Path, kind: type[Record]) -> list[Record]:
    return list(distinct_rows(read_rows(path, kind)))


def _no_file(path: Path, kind: type[Any]) -> DataError:
    return DataError(f"{path}: no such file; a set of {kind.__name__} rows is a folder that holds it")


def _lines(file: typing.BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """(offset, number from 1, bytes) of each line. Of bytes, ended by a line feed alone: text would also be split at U+2028."""
    start = 0
    for number, line in enumerate(file, 1):
        yield start, number, line
        start += len(line)


def _parse(line: bytes, where: str, kind: type[Record]) -> Record:
    try:
        row = json.loads(line.rstrip())  # without its end, so that a torn line is reported at its last column
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, got {type(row).__name__}")
    rows_of: Any = kind  # a class is hashable, which the type checker doubts of a frozen dataclass
    hints, needed = _fields(rows_of)
    for name in needed:
        if name not in row:
            raise DataError(f"{where}: field '{name}' is missing; fields: {', '.join(hints)}")
    for name, value in row.items():
        if name not in hints:
            raise DataError(f"{where}: field '{name}' is unknown.{nearest(name, hints)} Fields: {', '.join(hints)}")
        fits, expected = _TYPES[hints[name]]
        if not fits(value):
            raise DataError(f"{where}: field '{name}' must be {expected}, got {json.dumps(value)[:80]}")
    return kind(**row)


@functools.cache
def _fields(kind: type[Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """(name -> type of every field, the names that have no default)."""
    needed = (item.name for item in dataclasses.fields(kind) if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING)
    return typing.get_type_hints(kind), tuple(needed)


_TYPES: Mapping[Any, tuple[Callable[[Any], bool], str]] = {
    str: (lambda value: isinstance(value, str), "text"),
    str | None: (lambda value: value is None or isinstance(value, str), "text or null"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
    float: (lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value), "a finite number"),
    Mapping[str, Any]: (lambda value: isinstance(value, dict), "an object"),
}
