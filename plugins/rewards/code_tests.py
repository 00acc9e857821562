"""Whether a program passes all of its tests (LiveCodeBench's and their like)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from r1mega import hookimpl
from r1mega.data.chat import split_response
from r1mega.hookspecs import Register
from r1mega.rewards.solutions import Case, Limits, code_in, first_failure, read_tests
from r1mega.types import RewardSample, Score


@dataclass(frozen=True)
class CodeTestsConfig:
    """What a program may use for one test, and how many tests are run."""

    seconds: float = 6.0  # wall clock of one test
    memory_mb: int = 1024  # address space; at most the reward worker's own (reward.memory_mb)
    max_tests: int = 0  # the first so many; 0: all

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.memory_mb < 64 or self.max_tests < 0:
            raise ValueError(f"seconds must be above 0, memory_mb at least 64, max_tests at least 0; got {self}")


class CodeTests:
    """1 if the last code block after the reasoning passes every public and hidden test, otherwise 0.

    Needs `metadata` with `public_test_cases`, `private_test_cases` and `function`, as the task `livecodebench` gives. Programs run in processes of
    their own with limits on time and memory, which is no sandbox: see `rewards.solutions` for what they can still do.
    A sample takes up to `seconds` times its tests: set `reward.batch_size=1` and `reward.timeout_s` for the longest.
    """

    version = "1"

    def __init__(self, config: CodeTestsConfig) -> None:
        self._config = config
        self._limits = Limits(config.seconds, config.memory_mb)
        self._tests = functools.lru_cache(maxsize=4)(read_tests)  # the samples of one problem come together

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: RewardSample) -> Score:
        cases = self._cases(sample)
        code = code_in(split_response(sample.completion, starts_in_reasoning=sample.starts_in_reasoning)[1])
        if code is None:
            return Score(0.0, explanation="no code block after the reasoning")
        fault = first_failure(code, cases, sample.metadata.get("function", ""), self._limits)
        return Score(0.0, explanation=fault) if fault else Score(1.0)

    def _cases(self, sample: RewardSample) -> list[Case]:
        cases = [case for name in ("public_test_cases", "private_test_cases") for case in self._tests(sample.metadata.get(name, "[]"))]
        if not cases:
            raise ValueError(f"the sample's metadata has no tests; the reward 'code_tests' scores problems of the task 'livecodebench' only "
                             f"(prompt {sample.prompt[:80]!r})")
        return cases[: self._config.max_tests or None]


@hookimpl
def register_rewards(register: Register) -> None:
    register("code_tests", CodeTests, config=CodeTestsConfig)
