"""The run's stream of prompts: a task's problems, epoch after epoch, each epoch in an order of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from r1mega.errors import DataError
from r1mega.hookspecs import Tokenizer
from r1mega.types import EncodedPrompt, Prompt

_PLACES = re.compile(r"\{(question|response)\}")


def encode_prompt(prompt: Prompt, template: str, tokenizer: Tokenizer, turn: str = "", system: str = "") -> EncodedPrompt:
    """The prompt's question in the template (`{question}` replaced) after the conversation's earlier turns, tokenized."""
    text = render_prompt(prompt, template, turn, system)
    return EncodedPrompt(prompt, text, tuple(tokenizer.encode(text)))


def render_prompt(prompt: Prompt, template: str, turn: str = "", system: str = "") -> str:
    """The text that the model continues.

    `prompt.metadata["messages"]`, if it is there, holds what was said before the question: an optional system message, then user and assistant in
    turn, as {"role", "content"}. Each exchange is written as `turn` (see `TemplateConfig`), without the assistant's text up to `</think>`, as the
    chat template of the released models does. The exchanges stand where the last one begins: an introduction or a first token that the template
    has before what `turn` begins with comes once, in front; a system message stands after it as a paragraph, or in its place as `system` says.
    Raises `DataError` for messages in another order.
    """
    messages = list(prompt.metadata.get("messages") or ())
    question = template.replace("{question}", prompt.question)
    if not messages:
        return question
    turn = turn or template + "{response}\n\n"
    head = turn.partition("{question}")[0]
    before = template.partition("{question}")[0]
    place = len(before) - len(head) if before.endswith(head) else 0
    told = messages[0]["role"] == "system"
    exchanges = _exchanges(prompt, messages[1:] if told else messages, turn)
    if not told:
        return question[:place] + exchanges + question[place:]
    text = messages[0]["content"]
    opening = system.replace("{system}", text) if system else f"{question[:place]}{text}\n\n"
    return opening + exchanges + question[place:]


def _exchanges(prompt: Prompt, turns: Sequence[Mapping[str, str]], turn: str) -> str:
    if [message["role"] for message in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise DataError(f"prompt '{prompt.id}': metadata['messages'] must be user and assistant in turn, after at most one system message, and end "
                        f"with the assistant; got {', '.join(message['role'] for message in prompt.metadata['messages'])}")
    told = [message["content"] if message["role"] == "user" else message["content"].rpartition("</think>")[2].strip() for message in turns]
    parts = [{"question": said, "response": reply} for said, reply in zip(told[::2], told[1::2], strict=True)]
    return "".join(_PLACES.sub(lambda place, part=part: part[place[1]], turn) for part in parts)  # type: ignore[misc]


def stream_indices(problems: int, start: int, count: int, seed: int) -> list[int]:
    """Which problems stand at places start ... start + count - 1 of the stream; a pure function, so that a run resumes anywhere."""
    if problems < 1:
        raise DataError("the task has no training problems")
    indices: list[int] = []
    place = start
    while len(indices) < count:
        epoch, offset = divmod(place, problems)
        order = np.random.default_rng([seed, epoch]).permutation(problems)
        taken = order[offset: offset + count - len(indices)]
        indices += taken.tolist()
        place += len(taken)
    return indices


def drop_too_long(prompts: Sequence[EncodedPrompt], limit: int) -> tuple[list[EncodedPrompt], int]:
    """The prompts of at most `limit` tokens, and how many were dropped."""
    kept = [prompt for prompt in prompts if len(prompt.tokens) <= limit]
    return kept, len(prompts) - len(kept)
