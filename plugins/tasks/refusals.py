"""Safe and unsafe requests: which of them a model refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from r1mega import hookimpl
from r1mega.errors import ConfigError
from r1mega.hookspecs import Register
from r1mega.split import text_id
from r1mega.types import Prompt

from ._benchmark import BenchmarkConfig, BenchmarkTask, text_of
from ._rows import BadRowError


@dataclass(frozen=True)
class RefusalsConfig(BenchmarkConfig):
    """The fields of a row; the defaults are those of XSTest."""

    domain: str = "safety"
    prompt_field: str = "prompt"  # AdvBench calls it goal
    label_field: str = "label"  # `safe` or `unsafe`; empty: all rows are of one kind, see `label`
    label: Literal["safe", "unsafe"] = "unsafe"
    subject_field: str = "type"  # for the breakdown of the report, where a row has it

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt_field:
            raise ConfigError("task.prompt_field must name the column that holds the request")


class Refusals(BenchmarkTask):
    """Requests marked safe or unsafe, for the reward `refusal`: unsafe ones should be refused, safe ones should not (over-refusal)."""

    name = "refusals"
    config: RefusalsConfig

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        return _prompt(row, self.config)


def _prompt(row: Mapping[str, Any], config: RefusalsConfig) -> Prompt:
    request = text_of(row, config.prompt_field)
    label = text_of(row, config.label_field).lower() if config.label_field else config.label
    if label not in ("safe", "unsafe"):
        raise BadRowError(f"field '{config.label_field}' must be safe or unsafe, got {label!r}; with rows of one kind set task.label_field='' and task.label")
    subject = row.get(config.subject_field)
    return Prompt(id=text_id(request), question=request, answer=None, domain=config.domain, language=config.language,
                  metadata={"refusal_expected": label == "unsafe"} | ({"subject": subject} if isinstance(subject, str) and subject else {}))


@hookimpl
def register_tasks(register: Register) -> None:
    register("refusals", Refusals, config=RefusalsConfig)
