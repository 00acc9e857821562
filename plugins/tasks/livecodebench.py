"""LiveCodeBench: contest problems with hidden tests, in the published JSONL format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1mega import hookimpl
from r1mega.errors import ConfigError
from r1mega.hookspecs import Register
from r1mega.rewards.solutions import TestsError, read_tests
from r1mega.split import BARE_QUESTION, Split, text_id
from r1mega.types import Prompt

from ._benchmark import BenchmarkConfig, BenchmarkTask, json_of, text_of
from ._rows import BadRowError


@dataclass(frozen=True)
class LiveCodeBenchConfig(BenchmarkConfig):
    """Which contests. The paper measured on problems from 2024-08 to 2025-01 (v2 D.1)."""

    domain: str = "code"
    instruction: str = ""  # after the part on input and output, which is always there
    since: str = ""  # first `contest_date`, such as 2024-08-01; empty: all
    until: str = ""  # last one, inclusive

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("since", "until"):
            date = getattr(self, name)
            if date and (len(date) != 10 or date[4::3] != "--"):
                raise ConfigError(f"task.{name} must be a date such as 2024-08-01, got '{date}'")


class LiveCodeBench(BenchmarkTask):
    """LiveCodeBench problems with their public and hidden tests, for the reward `code_tests`.

    Fields: `question_content`, `public_test_cases` and `private_test_cases` (see `rewards.solutions.read_tests`: the compressed form is read without
    running any code of it), `metadata` (JSON with `func_name` for functional problems), `starter_code`, and `platform`, `difficulty`, `contest_date`
    where a row has them. Tests stay in their stored form in `Prompt.metadata`, since all of them together are gigabytes.
    """

    name = "livecodebench"
    config: LiveCodeBenchConfig

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        return _prompt(row, self.config)

    def load(self) -> Split:
        split = super().load()
        kept = tuple(prompt for prompt in split.test if _within(prompt.metadata["contest_date"], self.config))
        if not kept:
            raise ConfigError(f"task.since='{self.config.since}' and task.until='{self.config.until}' leave none of the {len(split.test)} problems")
        return Split(split.train, kept)


def _within(date: str, config: LiveCodeBenchConfig) -> bool:
    return (not config.since or date >= config.since) and (not config.until or date <= config.until)


def _prompt(row: Mapping[str, Any], config: LiveCodeBenchConfig) -> Prompt:
    content = text_of(row, "question_content")
    about = json_of(row, "metadata", dict, "an object") if row.get("metadata") else {}
    metadata: dict[str, Any] = {"function": about.get("func_name") or "", BARE_QUESTION: content}
    count = 0
    for name in ("public_test_cases", "private_test_cases"):
        stored = row.get(name) or "[]"
        metadata[name] = stored if isinstance(stored, str) else json.dumps(stored)
        try:
            tests = read_tests(metadata[name])
        except TestsError as error:
            raise BadRowError(f"field '{name}': {error}") from error
        if any(test.functional for test in tests) and not metadata["function"]:
            raise BadRowError("functional tests need the function's name in metadata.func_name")
        count += len(tests)
    if not count:
        raise BadRowError("no tests in 'public_test_cases' and 'private_test_cases'")
    for name in ("platform", "difficulty"):
        if isinstance(row.get(name), str):
            metadata["subject" if name == "difficulty" else name] = row[name]
    metadata["contest_date"] = str(row.get("contest_date") or "")[:10]
    if (config.since or config.until) and not metadata["contest_date"]:
        raise BadRowError("no field 'contest_date', which task.since and task.until need")
    starter = row.get("starter_code")
    return Prompt(id=text_id(content), question=_question(content, starter if isinstance(starter, str) else "", bool(metadata["function"])), answer=None,
                  domain=config.domain, language=config.language, metadata=metadata)


def _question(content: str, starter: str, functional: bool) -> str:
    if functional:
        form = "Complete the code below, keeping its names, and give the whole of it"
        return f"{content}\n\n{form} in one Python code block.\n\n```python\n{starter.rstrip()}\n```" if starter.strip() else f"{content}\n\n{form}."
    return f"{content}\n\nWrite a Python program that reads its input from standard input and prints the result. Give the whole program in one code block."


@hookimpl
def register_tasks(register: Register) -> None:
    register("livecodebench", LiveCodeBench, config=LiveCodeBenchConfig)
