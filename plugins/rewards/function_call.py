"""Whether a reply makes the expected function calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r1mega import hookimpl
from r1mega.data.chat import split_response
from r1mega.hookspecs import Register
from r1mega.rewards.calls import CallsError, calls_fault, calls_in, expected_calls
from r1mega.types import RewardSample, Score


@dataclass(frozen=True)
class FunctionCallConfig:
    """How strictly calls are compared."""

    ordered: bool = False  # the calls must come in the reference's order


class FunctionCall:
    """1 if the reply's JSON calls are those of `metadata["calls"]`, compared by meaning (order of keys, 1 and 1.0, allowed values), otherwise 0."""

    version = "1"

    def __init__(self, config: FunctionCallConfig) -> None:
        self._config = config

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: RewardSample) -> Score:
        if "calls" not in sample.metadata:
            raise ValueError(f"the sample's metadata has no 'calls'; the reward 'function_call' scores problems of the task 'function_calls' "
                             f"(prompt {sample.prompt[:80]!r})")
        expected = expected_calls(sample.metadata["calls"])
        try:
            given = calls_in(split_response(sample.completion, starts_in_reasoning=sample.starts_in_reasoning)[1])
        except CallsError as error:
            return Score(0.0, explanation=str(error))
        fault = calls_fault(given, expected, ordered=self._config.ordered)
        return Score(0.0, explanation=fault) if fault else Score(1.0)


@hookimpl
def register_rewards(register: Register) -> None:
    register("function_call", FunctionCall, config=FunctionCallConfig)
