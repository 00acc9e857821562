"""Whether a reply is JSON of the required schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r1mega import hookimpl
from r1mega.data.chat import split_response
from r1mega.hookspecs import Register
from r1mega.rewards.json_schema import check_schema, json_in, parse_json, same_json, schema_fault
from r1mega.types import RewardSample, Score


@dataclass(frozen=True)
class JsonOutputConfig:
    """What may stand around the JSON."""

    allow_text: bool = False  # text before and after a fenced block; without it the whole reply is the JSON, fenced or not


class JsonOutput:
    """1 if the reply is JSON that follows `metadata["schema"]` and, where it is there, equals `metadata["expected"]`, otherwise 0."""

    version = "1"

    def __init__(self, config: JsonOutputConfig) -> None:
        self._config = config

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: RewardSample) -> Score:
        if "schema" not in sample.metadata:
            raise ValueError(f"the sample's metadata has no 'schema'; the reward 'json_output' scores problems of the task 'json_outputs' "
                             f"(prompt {sample.prompt[:80]!r})")
        schema = sample.metadata["schema"]
        check_schema(schema)
        try:
            value = parse_json(json_in(split_response(sample.completion, starts_in_reasoning=sample.starts_in_reasoning)[1], whole=not self._config.allow_text))
        except ValueError as error:
            return Score(0.0, explanation=f"not JSON: {error}")
        fault = schema_fault(value, schema)
        if not fault and "expected" in sample.metadata and not same_json(value, sample.metadata["expected"]):
            fault = "another value than the expected one"
        return Score(0.0, explanation=fault) if fault else Score(1.0)


@hookimpl
def register_rewards(register: Register) -> None:
    register("json_output", JsonOutput, config=JsonOutputConfig)
