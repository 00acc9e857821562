"""Transcripts to continue: multi-turn questions and role play, with the earlier turns given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1mega import hookimpl
from r1mega.errors import ConfigError
from r1mega.hookspecs import Register
from r1mega.split import text_id
from r1mega.types import Prompt

from ._benchmark import BenchmarkConfig, BenchmarkTask, field_of
from ._messages import conversation, transcript
from .ifeval import instructions_of


@dataclass(frozen=True)
class ConversationsConfig(BenchmarkConfig):
    """The fields of a row."""

    messages_field: str = "messages"
    answer_field: str = ""  # the reference for the last question; empty: none
    instructions: bool = False  # rows have IFEval's instruction_id_list and kwargs for the reply: how a persona is to speak, say

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.messages_field:
            raise ConfigError("task.messages_field must name the column that holds the messages")


class Conversations(BenchmarkTask):
    """Conversations whose last message, the user's, is to be answered. The earlier replies are those of the file, not the model's own.

    A first message of role "system" says who the assistant plays. What earlier replies say before `</think>` is left out of the history.
    """

    name = "conversations"
    config: ConversationsConfig

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        return _prompt(row, self.config)


def _prompt(row: Mapping[str, Any], config: ConversationsConfig) -> Prompt:
    messages, question = conversation(row, config.messages_field)
    answer = str(field_of(row, config.answer_field, (str, int, float), "text or a number")).strip() if config.answer_field else None
    metadata: dict[str, Any] = ({"messages": messages} if messages else {}) | (instructions_of(row) if config.instructions else {})
    return Prompt(id=text_id(transcript(messages, question)), question=question, answer=answer, domain=config.domain, language=config.language,
                  metadata=metadata)


@hookimpl
def register_tasks(register: Register) -> None:
    register("conversations", Conversations, config=ConversationsConfig)
