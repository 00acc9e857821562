"""IFEval: prompts with instructions that a program can check, in the published JSONL format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.rewards.instructions import InstructionError, prepare
from r1mega.split import text_id
from r1mega.types import Prompt

from ._benchmark import BenchmarkConfig, BenchmarkTask, json_of, text_of
from ._rows import BadRowError


@dataclass(frozen=True)
class IFEvalConfig(BenchmarkConfig):
    """Where the file is; there is nothing else to choose."""

    domain: str = "general"


class IFEval(BenchmarkTask):
    """Prompts with verifiable instructions (Zhou et al., 2023, arXiv 2311.07911), for the reward `instructions`."""

    name = "ifeval"
    config: IFEvalConfig

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        return _prompt(row, self.config)


def _prompt(row: Mapping[str, Any], config: IFEvalConfig) -> Prompt:
    question = text_of(row, "prompt")
    return Prompt(id=text_id(question), question=question, answer=None, domain=config.domain, language=config.language, metadata=instructions_of(row))


def instructions_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """`instruction_id_list` and `kwargs` of a row, checked. Raises `BadRowError`."""
    ids = json_of(row, "instruction_id_list", list, "a list of instruction ids")
    kwargs = [dict(one or {}) for one in json_of(row, "kwargs", list, "a list of objects")]
    if not ids or len(ids) != len(kwargs):
        raise BadRowError(f"'instruction_id_list' and 'kwargs' must be of one length, at least 1; got {len(ids)} and {len(kwargs)}")
    settings = [{name: value for name, value in one.items() if value is not None} for one in kwargs]  # Parquet fills every column with nulls
    try:
        for name, one in zip(ids, settings, strict=True):
            prepare(name, one)
    except InstructionError as error:
        raise BadRowError(str(error)) from error
    return {"instruction_id_list": list(ids), "kwargs": settings}


@hookimpl
def register_tasks(register: Register) -> None:
    register("ifeval", IFEval, config=IFEvalConfig)
