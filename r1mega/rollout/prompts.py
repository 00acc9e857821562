"""The run's stream of prompts: a task's problems, epoch after epoch, each epoch in an order of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r1mega.errors import DataError
from r1mega.hookspecs import Tokenizer
from r1mega.types import EncodedPrompt, Prompt


def encode_prompt(prompt: Prompt, template: str, tokenizer: Tokenizer) -> EncodedPrompt:
    """The prompt's question in the template (`{question}` replaced), tokenized."""
    text = template.replace("{question}", prompt.question)
    return EncodedPrompt(prompt, text, tuple(tokenizer.encode(text)))


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
