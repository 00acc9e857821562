"""Conversations in rows: a text, or messages of role and content, of which the last is the question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._rows import BadRowError


def conversation(row: Mapping[str, Any], name: str) -> tuple[list[dict[str, str]], str]:
    """(earlier messages, question) of a field that is text, a list of messages, or such a list in a list (the Berkeley function-calling form).

    Messages are an optional system message, then user and assistant in turn, the last one the user's. Raises `BadRowError`.
    """
    if name not in row:
        raise BadRowError(f"no field '{name}'. Fields there: {', '.join(map(str, row)) or 'none'}")
    value = row[name]
    if isinstance(value, str) and value.strip():
        return [], value.strip()
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if not isinstance(value, list) or not value or not all(_is_message(message) for message in value):
        raise BadRowError(f"field '{name}' must be text, or a list of messages with 'role' (system, user, assistant) and 'content' (text)")
    messages = [{"role": message["role"], "content": message["content"]} for message in value]
    turns = [message["role"] for message in messages]
    turns = turns[1:] if turns[0] == "system" else turns
    if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise BadRowError(f"field '{name}' must be user and assistant in turn after at most one system message, and end with the user; "
                          f"got {', '.join(turns) or 'no turn'}")
    return messages[:-1], messages[-1]["content"]


def _is_message(message: Any) -> bool:
    return (isinstance(message, dict) and message.get("role") in ("system", "user", "assistant") and isinstance(message.get("content"), str)
            and bool(message["content"].strip()))


def transcript(messages: list[dict[str, str]], question: str) -> str:
    """The whole conversation as one text, for the problem's identity."""
    return "\n".join([*(f"{message['role']}: {message['content']}" for message in messages), question])
