"""Keep what a model is measured on out of what it learns from: n-gram overlap with every evaluation set (R1_RECIPE section 3; paper v2 D.1: 10-grams
of evaluation questions and solutions).

Words are compared without case and punctuation, Han and kana characters as words. A text of fewer words than the n-gram has none: it matches
only as a whole, and then punctuation counts ("3+5" is not "3-5").

What a recipe measures on reaches a stage in three ways: `evaluation_tasks`, which composition fills (`r1mega.recipe.evaluations`), the inputs of
`EVALUATION_INPUTS`, which it connects, and what the user names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1mega.config import Plugin
from r1mega.data.dedup import text_digest
from r1mega.data.language import content_words
from r1mega.data.records import JudgedResponse, PreferencePair, SampleRecord, read_prompts
from r1mega.errors import ConfigError, DataError
from r1mega.split import bare_question
from r1mega.types import Prompt

EVALUATION_INPUTS = ("evaluation", *(f"evaluation_{number}" for number in range(2, 9)))  # optional inputs of a stage that makes training data
Row = Prompt | SampleRecord | PreferencePair | JudgedResponse


@dataclass(frozen=True)
class DecontaminationConfig:
    """Which overlap with evaluation data drops a row."""

    ngram: int = 10  # words (paper v2 section D.1)
    common_share: float = 1.0  # n-grams in more than this share of a set's questions are its template, no evidence; 1: all count, as published
    recipe: bool = True  # against all that the recipe measures on; false: composition leaves `evaluation_tasks` and the inputs as they are

    def __post_init__(self) -> None:
        _check(self.ngram, self.common_share)


def _check(ngram: int, common_share: float) -> None:
    if ngram < 1 or not 0 < common_share <= 1:
        raise ConfigError(f"decontamination: ngram={ngram} must be at least 1 and common_share={common_share} above 0 and at most 1")


@dataclass(frozen=True)
class TaskDecontaminationConfig(DecontaminationConfig):
    """Of a stage that has a task of its own."""

    test_split: bool = True  # the task's own test split is an evaluation set


@dataclass(frozen=True)
class EvaluationTask:
    """A task whose test split is measured on: it is kept out of what is learned from."""

    task: Plugin
    seed: int = 0  # of the stage that measures


@dataclass(frozen=True)
class EvaluationFile:
    """Evaluation data outside the recipe: a .jsonl or .parquet file, or the folder of a PromptSet."""

    path: str
    id_field: str = "id"  # a row without it is known by its line
    text_fields: list[str] = field(default_factory=list)  # empty: every text of the row


@dataclass(frozen=True, slots=True)
class EvaluationText:
    """One problem that must not be learned from: `id` is "<set>/<problem>"."""

    id: str
    question: str
    solution: str = ""  # matched by n-grams alone: "42" as a whole text would match anything


class Decontaminator:
    """An index of evaluation texts. Memory: one entry per n-gram of them."""

    def __init__(self, texts: Iterable[EvaluationText], *, ngram: int = 10, common_share: float = 1.0) -> None:
        """`common_share`: an n-gram in more than this share of a set's questions is its template ("Which of the following ...") and no evidence;
        1 keeps them all, as published. Raises `ConfigError` for an impossible setting.
        """
        _check(ngram, common_share)
        self._n = ngram
        self._grams: dict[str, str] = {}
        self._whole: dict[str, str] = {}
        sets: dict[str, list[EvaluationText]] = {}
        for text in texts:
            sets.setdefault(text.id.partition("/")[0], []).append(text)
        self.sets = {name: len({text.id for text in members}) for name, members in sets.items()}  # set -> its problems
        for members in sets.values():
            self._add(members, common_share * len(members) if common_share < 1 else float("inf"))

    def __len__(self) -> int:
        """N-grams and whole texts in the index."""
        return len(self._grams) + len(self._whole)

    def _add(self, members: Sequence[EvaluationText], most: float) -> None:
        grams = [(text.id, dict.fromkeys((*self._ngrams(text.question), *self._ngrams(text.solution)))) for text in members]
        counts = Counter(gram for _, found in grams for gram in found) if most < float("inf") else Counter()
        for name, found in grams:
            for gram in found:
                if counts[gram] <= most or counts[gram] == 1:
                    self._grams.setdefault(gram, name)
        for text in members:
            if text.question.strip():
                self._whole.setdefault(text_digest(text.question), text.id)

    def _ngrams(self, text: str) -> Iterator[str]:
        words = content_words(text)
        return (" ".join(words[i: i + self._n]) for i in range(len(words) - self._n + 1))

    def find(self, *texts: str) -> str | None:
        """The id of the first evaluation problem that one of the texts overlaps with, or None."""
        for text in texts:
            if (found := self._whole.get(text_digest(text))) is not None:
                return found
            if self._grams:
                for gram in self._ngrams(text):
                    if (found := self._grams.get(gram)) is not None:
                        return found
        return None


def prompt_texts(name: str, prompts: Iterable[Prompt]) -> Iterator[EvaluationText]:
    """A set of problems as evaluation texts: as the data states them, since an instruction after every question is no part of any."""
    for prompt, problem in problems(prompts):
        solution = prompt.metadata.get("solution")
        yield EvaluationText(f"{name}/{prompt.id}", problem, "\n".join(part for part in (prompt.answer, solution) if isinstance(part, str)))


def problems(prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, str]]:
    """Each prompt of a set with its problem as one text: the question, after the conversation before it. A turn that several prompts share (a solved
    example, a persona) is no part of any."""
    prompts = list(prompts)
    counts = Counter(turn for prompt in prompts for turn in set(earlier_turns(prompt.metadata)))
    for prompt in prompts:
        yield prompt, "\n".join([*(turn for turn in earlier_turns(prompt.metadata) if counts[turn] == 1), bare_question(prompt)])


def earlier_turns(metadata: Mapping[str, Any]) -> list[str]:
    """What was said before the question, in order."""
    messages = metadata.get("messages")
    if not isinstance(messages, list | tuple):
        return []
    return [message["content"] for message in messages if isinstance(message, Mapping) and isinstance(message.get("content"), str)]


def question_texts(prompt: Prompt) -> list[str]:
    """What a prompt asks: its question. In a conversation each earlier turn too, and the conversation up to each turn: any may be a problem."""
    turns = [*earlier_turns(prompt.metadata), bare_question(prompt)]
    return turns + ["\n".join(turns[:end]) for end in range(2, len(turns) + 1)]


def row_texts(row: Row) -> list[str]:
    """All that is learned from a row of training data."""
    if isinstance(row, Prompt):
        return question_texts(row)
    if isinstance(row, SampleRecord):
        return [*question_texts(Prompt(row.id, row.prompt, metadata=row.metadata)), row.reasoning, row.response]
    return [row.prompt, row.chosen, row.rejected] if isinstance(row, PreferencePair) else [row.prompt, row.response]


def unset_tasks(tasks: Mapping[str, EvaluationTask]) -> dict[str, str]:
    """The tasks that cannot be read yet, since the user has not said where their data are: name -> the settings to give."""
    unset = {}
    for name, one in tasks.items():
        config: Any = getattr(one.task, "config", None)
        if keys := [f"task.{key}" for key in getattr(config, "required_paths", ()) if not getattr(config, key)]:
            unset[name] = ", ".join(keys)
    return unset


def file_texts(files: Mapping[str, EvaluationFile]) -> Iterator[EvaluationText]:
    """The texts of evaluation files by name. Raises `ConfigError` for a path that is not there, `DataError` with file and line for a bad row."""
    for name, file in files.items():
        path, key = Path(file.path).expanduser(), f"decontaminate_against.{name}.path"
        if not path.exists():
            raise ConfigError(f"{key}: '{path}' does not exist (looked in {Path.cwd()})")
        if path.is_dir():
            yield from prompt_texts(name, read_prompts(path))
        elif path.suffix == ".jsonl":
            yield from _row_texts(name, file, path, _json_rows(path))
        elif path.suffix == ".parquet":
            yield from _row_texts(name, file, path, _parquet_rows(path))
        else:
            raise ConfigError(f"{key}: '{path}' is neither a .jsonl nor a .parquet file nor the folder of a PromptSet")


def _row_texts(name: str, file: EvaluationFile, path: Path, rows: Iterable[tuple[int, Any]]) -> Iterator[EvaluationText]:
    for number, row in rows:
        if not isinstance(row, Mapping):
            raise DataError(f"{path}:{number}: expected an object, got {type(row).__name__}")
        if missing := [key for key in file.text_fields if not isinstance(row.get(key), str)]:
            raise DataError(f"{path}:{number}: field '{missing[0]}' is no text; fields: {', '.join(map(str, row)) or 'none'} "
                            f"(decontaminate_against.{name}.text_fields)")
        identity = f"{name}/{row.get(file.id_field, number)}"
        for key in file.text_fields or [key for key, value in row.items() if key != file.id_field and isinstance(value, str)]:
            # a short field other than the only one may be a label ("A", "math"): as a whole text it would match what it should not
            alone = len(file.text_fields) == 1 or key in ("question", "problem", "prompt")
            yield EvaluationText(identity, row[key] if alone else "", "" if alone else row[key])


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}:{number}: not valid JSON ({error})") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ConfigError(f"{path}: reading Parquet needs pyarrow; install it, or give the rows as .jsonl") from error
    yield from enumerate(parquet.read_table(path).to_pylist(), 1)
