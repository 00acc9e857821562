"""Function calling: a request, the functions on offer, and the calls that answer it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.rewards.calls import CallsError, expected_calls
from r1mega.split import text_id
from r1mega.types import Prompt

from ._benchmark import BenchmarkConfig, BenchmarkTask, json_of
from ._messages import conversation, transcript
from ._rows import BadRowError


@dataclass(frozen=True)
class FunctionCallsConfig(BenchmarkConfig):
    """The fields of a row; the defaults are those of the Berkeley leaderboard, its answers joined to the questions."""

    instruction: str = 'Reply with a JSON array of calls, each {"name": ..., "arguments": {...}}; an empty array if no function fits.'
    question_field: str = "question"  # text, or messages
    functions_field: str = "function"  # a list of descriptions: name, description, parameters (JSON schema)
    answer_field: str = "ground_truth"  # a list of calls; see `rewards.calls.expected_calls`


class FunctionCalls(BenchmarkTask):
    """Requests to be answered by calling functions, for the reward `function_call`."""

    name = "function_calls"
    config: FunctionCallsConfig

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        return _prompt(row, self.config)


def _prompt(row: Mapping[str, Any], config: FunctionCallsConfig) -> Prompt:
    messages, question = conversation(row, config.question_field)
    offered = json_of(row, config.functions_field, (list, dict), "a list of functions")
    offered = offered if isinstance(offered, list) else [offered]
    if not offered or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in offered):
        raise BadRowError(f"field '{config.functions_field}' must hold objects with a 'name'")
    calls = json_of(row, config.answer_field, list, "a list of calls")
    try:
        for call in expected_calls(calls):
            if call.name not in {one["name"] for one in offered}:
                raise BadRowError(f"field '{config.answer_field}' calls '{call.name}', which '{config.functions_field}' does not offer")
    except CallsError as error:
        raise BadRowError(f"field '{config.answer_field}': {error}") from error
    text = "You may call these functions:\n" + "\n".join(json.dumps(one, ensure_ascii=False) for one in offered) + f"\n\n{question}"
    return Prompt(id=text_id(transcript(messages, text)), question=text, answer=None, domain=config.domain, language=config.language,
                  metadata={"calls": calls} | ({"messages": messages} if messages else {}))


@hookimpl
def register_tasks(register: Register) -> None:
    register("function_calls", FunctionCalls, config=FunctionCallsConfig)
