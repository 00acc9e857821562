"""Rows on disk: a `PromptSet`, a `SampleSet` and a `PreferenceSet` are folders with one JSON Lines file and a digest of its rows.

    PromptSet/      prompts.jsonl  content.sha256
    SampleSet/      samples.jsonl  content.sha256  [samples.parquet  drops.json  README.md (the dataset card)]
    PreferenceSet/  pairs.jsonl and judged.jsonl (either may be empty)  content.sha256

The digest covers the rows alone, in order: no times, no paths. Every reader checks what it reads and names file and line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from r1mega.errors import DataError
from r1mega.recipe import files
from r1mega.types import Prompt

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One answered prompt to learn from, with where it came from.

    What the model is to say is `reasoning` (empty for a trivial query) and `response`, the summary or answer a reader sees; `chat.render_response`
    joins them. `provenance` holds what is known of the maker: `checkpoint` (fingerprint), `prompt_id`, `round`, `sample`, `rewards` (name -> value),
    `reward_versions`, `filters` (names passed), `rewriter`.
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


def write_prompts(folder: Path, prompts: Sequence[Prompt]) -> None:
    """Write a `PromptSet`."""
    _write(folder, {"prompts.jsonl": prompts})


def read_prompts(folder: Path) -> list[Prompt]:
    """The prompts of a `PromptSet`, in order. Raises `DataError` with file and line."""
    return _read(folder / "prompts.jsonl", Prompt)


def write_samples(folder: Path, samples: Sequence[SampleRecord]) -> None:
    """Write a `SampleSet`'s rows. Raises `DataError` when two rows share an id."""
    _write(folder, {"samples.jsonl": samples})


def read_samples(folder: Path) -> list[SampleRecord]:
    """The rows of a `SampleSet`, in order. Raises `DataError` with file and line."""
    return _read(folder / "samples.jsonl", SampleRecord)


def write_preferences(folder: Path, pairs: Sequence[PreferencePair], judged: Sequence[JudgedResponse]) -> None:
    """Write a `PreferenceSet`."""
    _write(folder, {"pairs.jsonl": pairs, "judged.jsonl": judged})


def read_preferences(folder: Path) -> tuple[list[PreferencePair], list[JudgedResponse]]:
    """The pairs and the judged responses of a `PreferenceSet`."""
    return _read(folder / "pairs.jsonl", PreferencePair), _read(folder / "judged.jsonl", JudgedResponse)


def _write(folder: Path, tables: Mapping[str, Sequence[Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for name, rows in tables.items():
        _refuse_repeats(name, (row.id for row in rows))
        lines = "".join(json.dumps(files.plain(dataclasses.asdict(row)), ensure_ascii=False) + "\n" for row in rows)
        digest.update(name.encode() + b"\0" + lines.encode("utf-8", "backslashreplace"))
        files.write_text(folder / name, lines.encode("utf-8", "backslashreplace").decode())
    files.write_text(folder / "content.sha256", digest.hexdigest() + "\n")


def _refuse_repeats(name: str, ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for number, row in enumerate(ids, 1):
        if row in seen:
            raise DataError(f"{name}:{number}: id '{row}' is there twice; ids of one set must differ")
        seen.add(row)


def _read(path: Path, kind: type[Record]) -> list[Record]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; a {kind.__name__} set is a folder that holds it")
    known = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    needed = [name for name, item in known.items() if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING]
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):  # of bytes: text would also be split at U+2028
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected an object, got {type(row).__name__}")
        if wrong := [name for name in needed if name not in row] or [name for name in row if name not in known]:
            raise DataError(f"{path}:{number}: field '{wrong[0]}' is {'missing' if wrong[0] in needed else 'unknown'}; fields: {', '.join(known)}")
        rows.append(kind(**row))
    return rows
