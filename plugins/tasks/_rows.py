"""What the file and data-set tasks share: rows of named fields turned into prompts, and their worked solutions into documents."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from r1mega.errors import ConfigError, DataError, nearest
from r1mega.split import Split, text_id
from r1mega.types import Prompt

SHOWN = 5  # bad rows listed in one message
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator annotations, such as <<48/2=24>>
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True)
class RowsConfig:
    """How a row becomes a prompt. A `*_field` names a column; an empty one means that the rows have none."""

    question_field: str = "question"
    answer_field: str = "answer"
    solution_field: str = ""  # worked solution, for pre-training documents; with answer_format gsm8k it is taken from the answer
    domain_field: str = ""
    language_field: str = ""
    domain: str = "math"  # of rows without a domain_field
    language: str = "en"  # of rows without a language_field
    answer_format: Literal["plain", "gsm8k"] = "plain"  # gsm8k: the reference is what follows ####, without thousands commas
    test_fraction: float = 0.1  # where the data brings no test split of its own
    split_seed: int = 0  # not the run's seed: every stage of every run must agree on what is held out
    max_prompts: int | None = None  # per split; None: all

    def __post_init__(self) -> None:
        if not self.question_field:
            raise ConfigError("task.question_field must name the column that holds the question")
        if self.answer_format == "gsm8k" and not self.answer_field:
            raise ConfigError("task.answer_format=gsm8k needs task.answer_field")
        if not 0 <= self.test_fraction <= 1:
            raise ConfigError(f"task.test_fraction must be between 0 and 1, got {self.test_fraction}")
        if self.max_prompts is not None and self.max_prompts < 1:
            raise ConfigError(f"task.max_prompts must be at least 1 or null, got {self.max_prompts}")


class BadRowError(ValueError):
    """Why one row cannot be a prompt; `read_prompts` adds where it stands."""


def _text(row: Mapping[str, Any], name: str, setting: str) -> str:
    """The field as text: a string, or a whole or decimal number written plainly."""
    if name not in row:
        raise BadRowError(f"no field '{name}' (task.{setting}).{nearest(name, row)} Fields there: {', '.join(map(str, row)) or 'none'}")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise BadRowError(f"field '{name}' must be text or a number, got {'null' if value is None else type(value).__name__}")
    text = str(value)
    if not text.strip():
        raise BadRowError(f"field '{name}' is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRowError(f"field '{name}' has a lone surrogate at character {error.start}; it is not valid Unicode") from error
    return text


def _reference(answer: str, config: RowsConfig) -> tuple[str, str]:
    """(worked solution or "", reference answer) out of the answer field."""
    if config.answer_format == "plain":
        return "", answer.strip()
    solution, mark, final = answer.rpartition("####")
    reference = _THOUSANDS.sub("", final.strip())
    if not mark or not reference:
        raise BadRowError(f"field '{config.answer_field}' has no '#### <answer>' at its end; "
                     "set task.answer_format=plain if the field is the answer itself")
    return _CALCULATOR.sub("", solution).strip(), reference


def to_prompt(row: Mapping[str, Any], config: RowsConfig, task: str) -> Prompt:
    """One row as a prompt; `metadata["solution"]` is its worked solution where there is one. Raises `BadRowError`."""
    question = _text(row, config.question_field, "question_field")
    solution, answer = "", None
    if config.answer_field:
        solution, answer = _reference(_text(row, config.answer_field, "answer_field"), config)
    if config.solution_field:
        solution = _text(row, config.solution_field, "solution_field")
    return Prompt(
        id=text_id(question), question=question, answer=answer, task=task,
        domain=_text(row, config.domain_field, "domain_field") if config.domain_field else config.domain,
        language=_text(row, config.language_field, "language_field") if config.language_field else config.language,
        metadata={"solution": solution} if solution else {},
    )


def read_prompts(rows: Iterable[tuple[str, Mapping[str, Any] | BadRowError]], config: RowsConfig, task: str) -> list[Prompt]:
    """`collect_prompts` of rows of named fields."""
    return collect_prompts(rows, lambda row: to_prompt(row, config, task))


def collect_prompts(rows: Iterable[tuple[str, Mapping[str, Any] | BadRowError]], convert: Callable[[Mapping[str, Any]], Prompt]) -> list[Prompt]:
    """Prompts of (where, row) pairs; where is "file:line". A row that could not even be read comes as a `BadRowError`.

    Raises one `DataError` that lists the first bad rows and counts the others.
    """
    prompts: list[Prompt] = []
    bad: dict[str, list[str]] = {}  # what is wrong -> where
    for where, row in rows:
        try:
            if isinstance(row, BadRowError):
                raise row
            prompts.append(convert(row))
        except BadRowError as error:
            bad.setdefault(str(error), []).append(where)
    if bad:
        count, told = sum(map(len, bad.values())), list(bad.items())[:SHOWN]
        left = count - sum(len(places) for _, places in told)
        shown = [f"{places[0]}{f' and {len(places) - 1} other rows' if len(places) > 1 else ''}: {error}" for error, places in told]
        raise DataError("; ".join(shown) + (f"; and {left} more malformed rows" if left else ""))
    return prompts


def document(prompt: Prompt) -> tuple[str | None, str]:
    """A pre-training document: the question with its worked solution as the thought; without an answer, the question alone.

    Where there is no solution the thought is the answer itself: an empty one would teach a format that the format reward refuses.
    """
    if prompt.answer is None:
        return None, prompt.question
    return prompt.question, f"<think>{prompt.metadata.get('solution') or prompt.answer}</think><answer>{prompt.answer}</answer>"


class PromptsTask:
    """The part of a task that follows from its split alone: prompts, and documents about training problems."""

    def __init__(self, split: Split, max_prompts: int | None = None) -> None:
        self.split = split
        self._max_prompts = max_prompts

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The problems of "train" or "test" in the data's order, at most `max_prompts`."""
        return self.split.side(split)[: self._max_prompts]

    def documents(self, count: int, seed: int) -> Iterator[tuple[str | None, str]]:
        """`count` documents about training problems, each as often as any other (whole shuffled passes); the same for the same seed."""
        generator = random.Random(f"documents {seed}")
        prompts = list(self.prompts("train"))
        while count > 0:
            generator.shuffle(prompts)
            yield from map(document, prompts[:count])
            count -= len(prompts)
