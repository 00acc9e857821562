"""Multiple-choice benchmarks: GPQA (options to be shuffled) and the MMLU family (options in a list)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from r1mega import hookimpl
from r1mega.errors import ConfigError
from r1mega.hookspecs import Register
from r1mega.rewards.options import LETTERS
from r1mega.split import text_id
from r1mega.types import Prompt

from ._benchmark import BenchmarkConfig, BenchmarkTask, field_of, json_of, text_of
from ._rows import BadRowError

_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


@dataclass(frozen=True)
class ChoiceConfig(BenchmarkConfig):
    """The layout of a row.

    `gpqa`: the columns Question, Correct Answer, Incorrect Answer 1 to 3; the options' order is drawn from a hash of the problem's id, so that it
    is the same for every run, checkpoint and file order. `mmlu`: a list of options in their order and the right one's index from 0 or letter.
    """

    domain: str = "stem"
    instruction: str = "Answer with the letter of one option."
    layout: Literal["gpqa", "mmlu"] = "mmlu"
    question_field: str = "question"  # these three with layout mmlu; MMLU-Pro calls the options `options`
    choices_field: str = "choices"
    answer_field: str = "answer"
    subject_field: str = "subject"  # for the breakdown of the report, where a row has it; GPQA: High-level domain
    shuffle: bool = False  # also with layout mmlu

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.question_field and self.choices_field and self.answer_field):
            raise ConfigError("task.question_field, task.choices_field and task.answer_field must name columns")


class Choice(BenchmarkTask):
    """Multiple-choice questions (GPQA, MMLU and their like); the reference answer is a letter."""

    name = "choice"
    config: ChoiceConfig

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        return _prompt(row, self.config)

    def example(self, prompt: Prompt) -> str:
        return rf"\boxed{{{prompt.answer}}}"


def _prompt(row: Mapping[str, Any], config: ChoiceConfig) -> Prompt:
    question, options, right = _gpqa(row) if config.layout == "gpqa" else _mmlu(row, config)
    problem = text_id("\n".join([question, *sorted(options)]))
    order = shuffled(len(options), problem) if config.shuffle or config.layout == "gpqa" else list(range(len(options)))
    lines = [f"{LETTERS[place]}) {options[index]}" for place, index in enumerate(order)]
    subject = row.get(config.subject_field)
    return Prompt(id=problem, question="\n".join([question, "", *lines]), answer=LETTERS[order.index(right)], domain=config.domain, language=config.language,
                  metadata={"options": len(options)} | ({"subject": subject} if isinstance(subject, str) and subject else {}))


def shuffled(options: int, problem: str) -> list[int]:
    """An order of the options that the problem's id alone decides: place -> index."""
    return sorted(range(options), key=lambda index: hashlib.blake2b(f"{problem}/{index}".encode(), digest_size=8).digest())


def _gpqa(row: Mapping[str, Any]) -> tuple[str, list[str], int]:
    return text_of(row, "Question"), [text_of(row, "Correct Answer"), *(text_of(row, name) for name in _WRONG)], 0


def _mmlu(row: Mapping[str, Any], config: ChoiceConfig) -> tuple[str, list[str], int]:
    options: Sequence[Any] = json_of(row, config.choices_field, list, "a list of options")
    if not 2 <= len(options) <= len(LETTERS) or not all(isinstance(option, str) for option in options):
        raise BadRowError(f"field '{config.choices_field}' must be a list of 2 to {len(LETTERS)} texts")
    answer = field_of(row, config.answer_field, (int, str), "the right option's index from 0, or its letter")
    text = str(answer).strip()
    right = int(text) if text.isdecimal() else LETTERS.find(text.upper()) if len(text) == 1 else -1
    if not 0 <= right < len(options):
        raise BadRowError(f"field '{config.answer_field}' must be an index from 0 to {len(options) - 1} or a letter up to {LETTERS[len(options) - 1]}, "
                          f"got {answer!r}")
    return text_of(row, config.question_field), [option.strip() for option in options], right


@hookimpl
def register_tasks(register: Register) -> None:
    register("choice", Choice, config=ChoiceConfig)
