"""What the benchmark tasks share: their files' rows, the split, an instruction after each question, and solved examples before it (few-shot)."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from r1mega.errors import ConfigError, DataError, nearest
from r1mega.split import BARE_QUESTION, Split, bare_question, given_split
from r1mega.types import Prompt

from ._rows import BadRowError, PromptsTask, collect_prompts
from .jsonl import Rows, jsonl_rows, parquet_rows, report

SUFFIXES = (".jsonl", ".parquet", ".csv")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Where a benchmark's file is and how its questions are put."""

    required_paths: ClassVar[tuple[str, ...]] = ("path",)
    path: str = ""  # the file with the problems to measure on, or a folder with test.* (and train.*) in it; .jsonl, .parquet or .csv
    train_path: str = ""  # a file of the same format with solved examples; empty: train.* of the folder, where there is one
    shots: int = 0  # solved examples before each question; 0: zero-shot
    instruction: str = ""  # after every question, on a line of its own
    domain: str = "general"
    language: str = "en"
    max_prompts: int | None = None  # None: all

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise ConfigError(f"task.shots must be at least 0, got {self.shots}")
        if self.max_prompts is not None and self.max_prompts < 1:
            raise ConfigError(f"task.max_prompts must be at least 1 or null, got {self.max_prompts}")


class BenchmarkTask(PromptsTask, ABC):
    """A benchmark's problems: the split "test" is what is measured, "train" the solved examples, if any. A benchmark says what a row is.

    With `shots`, the first that many training problems come before every question as earlier turns (`metadata["messages"]`), the same for all.
    """

    version = "1"
    name: str

    def __init__(self, config: BenchmarkConfig, *, seed: int = 0) -> None:
        """Reads and checks every row at once. Raises `ConfigError` for the path and the shots, `DataError` with file and line for a row.

        `seed` is accepted as for every task; nothing here is drawn at random.
        """
        self.config = config
        self.seed = seed
        super().__init__(self.load(), config.max_prompts)

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The problems of a side; "train" is empty where there are no solved examples: an RL stage may measure on a benchmark that it cannot train on."""
        return () if split == "train" and not self.split.train else super().prompts(split)

    @abstractmethod
    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        """A row as a prompt. Raises `BadRowError`."""

    def example(self, prompt: Prompt) -> str | None:  # noqa: ARG002 (for those who have an answer to show)
        """The reply shown with a solved example; None where the data has none."""
        return None

    def load(self) -> Split:
        config = self.config
        test_file, train_file = _files(config)
        test = self._prompts(test_file)
        train = self._prompts(train_file) if train_file else []
        split = report(given_split(train, test), str(test_file))
        return replace(split, test=self._after_examples(split)) if config.shots else split

    def _prompts(self, file: Path) -> list[Prompt]:
        if file.suffix not in SUFFIXES:
            raise ConfigError(f"task.path: '{file}' must end in {', '.join(SUFFIXES)}")
        rows = {".jsonl": jsonl_rows, ".parquet": parquet_rows, ".csv": _csv_rows}[file.suffix](file)
        prompts = collect_prompts(rows, lambda row: self._instructed(self.prompt(row)))
        if not prompts:
            raise DataError(f"{file}: no problems in it")
        return prompts

    def _instructed(self, prompt: Prompt) -> Prompt:
        """With the instruction; the id stays that of the bare problem, so that zero-shot and few-shot runs can be compared problem by problem."""
        if not self.config.instruction:
            return replace(prompt, task=self.name)
        return replace(prompt, question=f"{prompt.question}\n\n{self.config.instruction}", task=self.name,
                       metadata={**prompt.metadata, BARE_QUESTION: bare_question(prompt)})

    def _after_examples(self, split: Split) -> tuple[Prompt, ...]:
        shots = self.config.shots
        if len(split.train) < shots:
            raise ConfigError(f"task.shots={shots} needs as many solved examples, found {len(split.train)}; "
                              "give a file of them with task.train_path, or train.* beside test.* in the folder task.path")
        turns = []
        for shown in split.train[:shots]:
            reply = self.example(shown)
            if reply is None:
                raise ConfigError(f"task.shots={shots}: the data of task '{self.name}' has no solved examples; set task.shots=0")
            turns += [{"role": "user", "content": shown.question}, {"role": "assistant", "content": reply}]
        return tuple(replace(prompt, metadata={**prompt.metadata, "messages": turns}) for prompt in split.test)


def _files(config: BenchmarkConfig) -> tuple[Path, Path | None]:
    if not config.path:
        raise ConfigError("task.path is empty: set it to the benchmark's file, or to a folder with test.jsonl, test.parquet or test.csv (task.path=...)")
    path, given = Path(config.path).expanduser(), Path(config.train_path).expanduser() if config.train_path else None
    for setting, place in (("path", path), ("train_path", given)):
        if place is not None and not place.exists():
            raise ConfigError(f"task.{setting}: '{place}' does not exist (looked in {Path.cwd()})")
    if given is not None and not given.is_file():
        raise ConfigError(f"task.train_path: expected a file, but '{given}' is a folder")
    if path.is_file():
        return path, given
    test = _side(path, "test")
    if test is None:
        raise ConfigError(f"task.path: folder '{path}' has no test.jsonl, test.parquet or test.csv; name the file itself")
    return test, given or _side(path, "train")


def _side(folder: Path, side: str) -> Path | None:
    found = [folder / (side + suffix) for suffix in SUFFIXES if (folder / (side + suffix)).is_file()]
    if len(found) > 1:
        raise ConfigError(f"task.path: '{folder}' has both {found[0].name} and {found[1].name}; name one file")
    return found[0] if found else None


def _csv_rows(file: Path) -> Rows:
    """(file:line, fields) of every row, the first line naming the fields; the line is where the row ends."""
    try:
        csv.field_size_limit(1 << 27)
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, restkey="", strict=True)
            try:
                for row in reader:
                    where = f"{file}:{reader.line_num}"
                    yield where, BadRowError("more values than the first line names") if "" in row else row
            except csv.Error as error:
                yield f"{file}:{reader.line_num}", BadRowError(f"not valid CSV: {error}")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start + 1}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def field_of(row: Mapping[str, Any], name: str, kind: type | tuple[type, ...], expected: str) -> Any:
    """A field of one of the types `kind`. Raises `BadRowError` that says what was `expected`."""
    if name not in row:
        raise BadRowError(f"no field '{name}'.{nearest(name, row)} Fields there: {', '.join(map(str, row)) or 'none'}")
    value = row[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadRowError(f"field '{name}' must be {expected}, got {'null' if value is None else type(value).__name__}")
    return value


def text_of(row: Mapping[str, Any], name: str) -> str:
    """A field that is text and not empty, stripped."""
    text: str = field_of(row, name, str, "text").strip()
    if not text:
        raise BadRowError(f"field '{name}' is empty")
    return text


def json_of(row: Mapping[str, Any], name: str, kind: type | tuple[type, ...], expected: str) -> Any:
    """A field that holds data, as it is or as JSON text (as in Parquet and CSV files)."""
    value = field_of(row, name, (str, list, dict), f"{expected}, or JSON text of it")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRowError(f"field '{name}' is not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise BadRowError(f"field '{name}' must be {expected}, got {type(value).__name__}")
    return value
