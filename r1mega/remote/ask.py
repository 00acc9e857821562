"""Questions to a chat model whose answers must have a form: asked together, read strictly, asked again where the form is missed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from r1mega.errors import ConfigError
from r1mega.remote.answers import UnreadableAnswerError, read_chat
from r1mega.remote.client import Call, Client, Payload
from r1mega.remote.config import ServerConfig

T = TypeVar("T")


@dataclass(frozen=True)
class ChatConfig:
    """Which model answers, and how it is sampled. `server` may be a plain mapping, as the settings of a reward term are."""

    model: str  # the name under which the server serves it
    server: ServerConfig = field(default_factory=ServerConfig)
    temperature: float = 0.6  # above 0, so that a second attempt is another answer
    top_p: float = 0.95
    max_tokens: int = 8192  # reasoning of the answering model included
    attempts: int = 3  # samples tried until one has the asked form
    extra_body: dict[str, Any] = field(default_factory=dict)  # further request fields, e.g. {response_format: {type: json_object}}; null removes one

    def __post_init__(self) -> None:
        object.__setattr__(self, "server", ServerConfig.of(self.server))
        if not self.model or self.model == "???":
            raise ConfigError("model: give the name under which the server serves the model; GET <server.base_url>/models lists them")
        if self.attempts < 1 or self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(f"impossible settings: attempts={self.attempts}, max_tokens={self.max_tokens} (at least 1), "
                              f"temperature={self.temperature} (at least 0), top_p={self.top_p} (above 0, at most 1)")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. `key` fixes the seed together with the attempt, whoever asks and whenever."""

    key: str
    system: str
    user: str


def ask(client: Client, config: ChatConfig, questions: Sequence[Question], readers: Sequence[Callable[[str], T]]) -> list[T | UnreadableAnswerError]:
    """For each question what its reader makes of the answer's text, or the last `UnreadableAnswerError` it raised when no attempt had the form.

    Raises `RemoteError` or `RemoteRefusedError` where the server fails.
    """
    results: list[T | UnreadableAnswerError] = [UnreadableAnswerError("not asked")] * len(questions)
    open_places = list(range(len(questions)))
    for attempt in range(config.attempts):
        places = open_places

        def on_answer(index: int, payload: Payload, places: Sequence[int] = places) -> None:
            answer = read_chat(payload)
            try:
                if answer.finish_reason == "length":
                    raise UnreadableAnswerError(f"the answer was cut off at max_tokens={config.max_tokens}: {answer.text[-100:]!r}")
                results[places[index]] = readers[places[index]](answer.text)
            except UnreadableAnswerError as error:
                results[places[index]] = error

        client.each([_call(config, questions[place], attempt) for place in places], on_answer)
        open_places = [place for place in places if isinstance(results[place], UnreadableAnswerError)]
    return results


def _call(config: ChatConfig, question: Question, attempt: int) -> Call:
    messages = [{"role": "system", "content": question.system}, {"role": "user", "content": question.user}]
    body = {"model": config.model, "messages": messages, "temperature": config.temperature, "top_p": config.top_p,
            "max_tokens": config.max_tokens, "seed": portable_seed(f"{question.key}/{attempt}")}
    return Call("chat/completions", with_extra(body, config.extra_body))


def portable_seed(key: str) -> int:
    """31 bits, which every server takes."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") >> 1


def with_extra(body: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The body with the user's fields over it; a field set to null is left out."""
    return {name: value for name, value in {**body, **extra}.items() if value is not None}


def fenced(title: str, text: str, key: str) -> str:
    """`text` between marks that its author could not know, so that nothing in it can pass for an instruction's end."""
    mark = hashlib.blake2b(f"{title}/{key}/{text}".encode(), digest_size=4).hexdigest()
    return f"<<{title} {mark}>>\n{text}\n<<end of {title} {mark}>>"
