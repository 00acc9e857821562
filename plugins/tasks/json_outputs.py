"""JSON output: requests whose reply must be JSON of a given schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.rewards.json_schema import SchemaError, check_schema
from r1mega.split import text_id
from r1mega.types import Prompt

from ._benchmark import BenchmarkConfig, BenchmarkTask, json_of
from ._messages import conversation, transcript
from ._rows import BadRowError


@dataclass(frozen=True)
class JsonOutputsConfig(BenchmarkConfig):
    """The fields of a row; the defaults are those of json-mode-eval."""

    instruction: str = "Reply with JSON only."
    prompt_field: str = "prompt"  # text, or messages
    schema_field: str = "schema"  # an object, or JSON text of one
    answer_field: str = ""  # the value itself, where the reply must equal it (json-mode-eval: completion); empty: the schema decides alone
    show_schema: bool = False  # put the schema into the question, where the prompt does not hold it already


class JsonOutputs(BenchmarkTask):
    """Requests to be answered with JSON of a schema, for the reward `json_output`."""

    name = "json_outputs"
    config: JsonOutputsConfig

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        return _prompt(row, self.config)


def _prompt(row: Mapping[str, Any], config: JsonOutputsConfig) -> Prompt:
    messages, question = conversation(row, config.prompt_field)
    schema = json_of(row, config.schema_field, dict, "a JSON schema")
    try:
        check_schema(schema)
    except SchemaError as error:
        raise BadRowError(f"field '{config.schema_field}': {error}") from error
    metadata: dict[str, Any] = {"schema": schema} | ({"messages": messages} if messages else {})
    if config.answer_field:
        metadata["expected"] = json_of(row, config.answer_field, (dict, list, str, int, float, bool), "JSON")
    if config.show_schema:
        question += f"\n\nThe JSON must follow this schema:\n{json.dumps(schema, ensure_ascii=False)}"
    return Prompt(id=text_id(transcript(messages, question)), question=question, answer=None, domain=config.domain, language=config.language, metadata=metadata)


@hookimpl
def register_tasks(register: Register) -> None:
    register("json_outputs", JsonOutputs, config=JsonOutputsConfig)
