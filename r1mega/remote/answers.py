"""What a server's answer says, checked: completions, chat messages, and JSON objects inside a message."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1mega.remote.client import RemoteError
from r1mega.types import FinishReason

_FINISH: Mapping[str, FinishReason] = {"stop": "stop", "length": "length", "content_filter": "length"}  # filtered: cut off, not ended


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of the server's. What it does not tell is None."""

    text: str
    finish_reason: FinishReason
    reasoning: str = ""  # chat only, where the server separates it from the text
    token_ids: tuple[int, ...] | None = None  # [C], the stop token included
    token_texts: tuple[str, ...] | None = None  # [C]
    logprobs: tuple[float, ...] | None = None  # [C]


class UnreadableAnswerError(ValueError):
    """A model's words that are not what it was asked for; another sample may be."""


def read_completion(payload: Mapping[str, Any]) -> Answer:
    """The first choice of a `/completions` answer. Raises `RemoteError` that says what is missing."""
    choice = _choice(payload, "text")
    ids, told = choice.get("token_ids"), choice.get("logprobs") or {}
    texts, logprobs = told.get("tokens"), told.get("token_logprobs")
    return Answer(choice["text"], _finish(choice), token_ids=_all(int, ids), token_texts=_all(str, texts), logprobs=_logprobs(logprobs))


def read_chat(payload: Mapping[str, Any]) -> Answer:
    """The first choice of a `/chat/completions` answer. Raises `RemoteError` that says what is missing."""
    choice = _choice(payload, "message")
    message = choice["message"]
    if not isinstance(message, dict):
        raise RemoteError(f"choices[0].message of the server's answer is {message!r}, expected an object")
    content, reasoning = message.get("content"), message.get("reasoning_content") or message.get("reasoning") or ""
    if content is None and (reasoning or choice.get("finish_reason") != "stop"):
        content = ""  # cut off before the first word of the reply
    if not isinstance(content, str) or not isinstance(reasoning, str):
        raise RemoteError(f"choices[0].message of the server's answer has no text: {str(message)[:200]}")
    return Answer(content, _finish(choice), reasoning=reasoning)


def read_object(text: str, keys: Sequence[str]) -> dict[str, str]:
    """The JSON object a model was asked for: exactly `keys`, each a text, and nothing around it but a closed reasoning block or one code fence.

    Raises `UnreadableAnswerError`.
    """
    body = text.rpartition("</think>")[2].strip()
    if body.startswith("```") and body.endswith("```") and len(body) > 6:
        body = body[3:-3].removeprefix("json").strip()
    try:
        value = json.loads(body, object_pairs_hook=_no_repeats)
    except ValueError as error:
        raise UnreadableAnswerError(f"expected one JSON object with {', '.join(keys)}, got {text.strip()[:200]!r} ({error})") from error
    if not isinstance(value, dict) or sorted(value) != sorted(keys) or not all(isinstance(item, str) for item in value.values()):
        raise UnreadableAnswerError(f"expected one JSON object with exactly the texts {', '.join(keys)}, got {body[:200]!r}")
    return value


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _choice(payload: Mapping[str, Any], wanted: str) -> Mapping[str, Any]:
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict) or choices[0].get(wanted) is None:
        raise RemoteError(f"the server's answer has no choices[0].{wanted}: {str(dict(payload))[:200]}")
    choice: Mapping[str, Any] = choices[0]
    return choice


def _finish(choice: Mapping[str, Any]) -> FinishReason:
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or reason not in _FINISH:
        raise RemoteError(f"the server ended an answer with finish_reason {reason!r}, expected one of {', '.join(_FINISH)}")
    return _FINISH[reason]


def _all(kind: type, values: Any) -> tuple[Any, ...] | None:
    return tuple(values) if isinstance(values, list) and all(type(value) is kind for value in values) else None


def _logprobs(values: Any) -> tuple[float, ...] | None:
    """Finite numbers, at most 0 but for rounding; None where the server gives none."""
    if not isinstance(values, list) or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return None
    return tuple(float(value) for value in values)
