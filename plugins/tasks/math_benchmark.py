"""Benchmarks of problems with one final answer: AIME (an integer), MATH-500 (LaTeX), GSM8K (what follows ####)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from r1mega import hookimpl
from r1mega.errors import ConfigError
from r1mega.hookspecs import Register
from r1mega.types import Prompt

from ._benchmark import BenchmarkConfig, BenchmarkTask
from ._rows import BadRowError, RowsConfig, to_prompt


@dataclass(frozen=True)
class MathBenchmarkConfig(BenchmarkConfig):
    """The fields of a row, and what its answer must be. Published files: AIME and MATH-500 as the defaults, GSM8K `question` and `answer`."""

    domain: str = "math"
    question_field: str = "problem"
    answer_field: str = "answer"
    solution_field: str = "solution"  # shown in few-shot examples, where a row has it
    subject_field: str = "subject"  # for the breakdown of the report, where a row has it
    answers: Literal["latex", "integer", "gsm8k"] = "latex"
    smallest: int = 0  # of integer answers
    largest: int = 999

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.question_field or not self.answer_field:
            raise ConfigError("task.question_field and task.answer_field must name columns")
        if self.smallest > self.largest:
            raise ConfigError(f"task.smallest={self.smallest} is above task.largest={self.largest}")


class MathBenchmark(BenchmarkTask):
    """Problems with one final answer: an integer in a range (AIME), LaTeX (MATH-500) or what follows #### (GSM8K)."""

    name = "math_benchmark"
    config: MathBenchmarkConfig

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        return _prompt(row, self.config)

    def example(self, prompt: Prompt) -> str:
        return _example(prompt)


def _prompt(row: Mapping[str, Any], config: MathBenchmarkConfig) -> Prompt:
    has_solution = bool(config.solution_field) and isinstance(row.get(config.solution_field), str) and bool(row[config.solution_field].strip())
    prompt = to_prompt(row, RowsConfig(
        question_field=config.question_field, answer_field=config.answer_field, solution_field=config.solution_field if has_solution else "",
        domain=config.domain, language=config.language, answer_format="gsm8k" if config.answers == "gsm8k" else "plain"), "math_benchmark")
    if config.answers == "integer":
        prompt = replace(prompt, answer=_integer(str(prompt.answer), config))
    subject = row.get(config.subject_field)
    return replace(prompt, metadata={**prompt.metadata, "subject": subject}) if isinstance(subject, str) and subject else prompt


def _integer(answer: str, config: MathBenchmarkConfig) -> str:
    """As written without leading zeros: AIME's "033" is 33."""
    if not re.fullmatch(r"[+-]?\d+(?:\.0+)?", answer) or not config.smallest <= int(answer.partition(".")[0]) <= config.largest:
        raise BadRowError(f"field '{config.answer_field}' must be an integer from {config.smallest} to {config.largest} (task.answers=integer), "
                          f"got {answer!r}")
    return str(int(answer.partition(".")[0]))


def _example(prompt: Prompt) -> str:
    solution = str(prompt.metadata.get("solution", ""))
    boxed = rf"\boxed{{{prompt.answer}}}"
    return solution if r"\boxed" in solution else f"{solution}\n\n{boxed}".strip()


@hookimpl
def register_tasks(register: Register) -> None:
    register("math_benchmark", MathBenchmark, config=MathBenchmarkConfig)
