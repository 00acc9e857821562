"""Problems from JSONL or Parquet files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from r1mega import hookimpl
from r1mega.errors import ConfigError, DataError, UserError
from r1mega.hookspecs import Register
from r1mega.split import Split, given_split, split_prompts
from r1mega.types import Prompt

from ._rows import BadRowError, PromptsTask, RowsConfig, read_prompts

log = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".parquet")
Rows = Iterator[tuple[str, Mapping[str, Any] | BadRowError]]


@dataclass(frozen=True)
class JsonlConfig(RowsConfig):
    """Where the files are, beside how their rows are read.

    A file is split by `test_fraction`. A folder that has train.* and test.* (or the files named here) keeps those splits; any other folder
    is read whole and split by `test_fraction`.
    """

    required_paths: ClassVar[tuple[str, ...]] = ("path",)
    path: str = ""  # file or folder
    train_file: str = ""  # inside the folder; empty: train.jsonl or train.parquet if both sides are there
    test_file: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.train_file) != bool(self.test_file):
            raise ConfigError("task.train_file and task.test_file go together: give both or neither")


class Jsonl(PromptsTask):
    """Problems from a JSONL or Parquet file or folder, with a field mapping and GSM8K's #### answers."""

    version = "1"

    def __init__(self, config: JsonlConfig, *, seed: int = 0) -> None:
        """Reads and checks every row at once. Raises `ConfigError` for the path, `DataError` for what is in the files.

        `seed` is accepted as for every task; nothing here is drawn at random.
        """
        self.config = config
        self.seed = seed
        super().__init__(_load(config), config.max_prompts)


def _load(config: JsonlConfig) -> Split:
    if not config.path:
        raise ConfigError("task.path is empty: set it to a .jsonl or .parquet file, or to a folder of them (task.path=...)")
    path = Path(config.path).expanduser()
    if not path.exists():
        raise ConfigError(f"task.path: '{path}' does not exist (looked in {Path.cwd()})")
    sides = _sides(path, config)
    if sides is None:
        files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise ConfigError(f"task.path: folder '{path}' has no {' or '.join(SUFFIXES)} file")
        return report(split_prompts(_prompts(files, config), config.test_fraction, config.split_seed), str(path))
    train, test = sides
    return report(given_split(_prompts([train], config), _prompts([test], config)), str(path))


def report(split: Split, source: str) -> Split:
    """Say what was dropped; returns the split unchanged."""
    if split.leaked:
        log.warning("%s: removed %d training problems that are also in the test set", source, split.leaked)
    if split.duplicates:
        log.warning("%s: dropped %d rows that repeat a problem", source, split.duplicates)
    return split


def _sides(path: Path, config: JsonlConfig) -> tuple[Path, Path] | None:
    """The train and test files the data comes with, or None where one pool is to be split."""
    if config.train_file:
        if not path.is_dir():
            raise ConfigError(f"task.path must be a folder with task.train_file and task.test_file in it, but '{path}' is a file")
        named = (path / config.train_file, path / config.test_file)
        missing = [str(file) for file in named if not file.is_file()]
        if missing:
            raise ConfigError(f"task.train_file / task.test_file: no such file: {', '.join(missing)}")
        return named
    if not path.is_dir():
        return None
    found = {side: [path / (side + suffix) for suffix in SUFFIXES if (path / (side + suffix)).is_file()] for side in ("train", "test")}
    for side, files in found.items():
        if len(files) > 1:
            raise ConfigError(f"task.path: '{path}' has both {files[0].name} and {files[1].name}; choose with task.{side}_file")
    return (found["train"][0], found["test"][0]) if found["train"] and found["test"] else None


def _prompts(files: list[Path], config: JsonlConfig) -> list[Prompt]:
    rows = (row for file in files for row in (parquet_rows(file) if file.suffix == ".parquet" else jsonl_rows(file)))
    prompts = read_prompts(rows, config, task="jsonl")
    if not prompts:
        raise DataError(f"{', '.join(map(str, files))}: no problems in it; expected one JSON object a line (or Parquet row) with "
                        f"'{config.question_field}'")
    return prompts


def jsonl_rows(file: Path) -> Rows:
    """(file:line, object) of every line that is not blank."""
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}:{number}", _parse(line)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def _parse(line: bytes) -> Mapping[str, Any] | BadRowError:
    try:
        value = json.loads(line.rstrip().decode("utf-8-sig"))  # without its end, so that a torn line is reported at its last column
    except UnicodeDecodeError as error:
        return BadRowError(f"not UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return BadRowError(f"not valid JSON: {error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:
        return BadRowError(f"not readable JSON: {error}")
    return value if isinstance(value, dict) else BadRowError(f"expected a JSON object, got {type(value).__name__}")


def parquet_rows(file: Path) -> Rows:
    """(file:row, fields) of every row, counted from 1."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{file}: Parquet needs pyarrow, which is not installed: pip install 'r1mega[hf]'") from error
    try:
        number = 0
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file: {error}") from error


@hookimpl
def register_tasks(register: Register) -> None:
    register("jsonl", Jsonl, config=JsonlConfig)
