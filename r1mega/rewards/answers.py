r"""Where a completion's answer stands. Strict: an answer anywhere else is no answer.

Every function is linear in the length of the text and uses no backtracking pattern on model output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

ExtractMode = Literal["answer_tag", "boxed", "last_number", "auto"]

NUMBER = re.compile(r"[-−+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:/\d+)?%?")  # in running text


@dataclass(frozen=True, slots=True)
class Extracted:
    """The answer's text, stripped, or None and the reason."""

    answer: str | None
    reason: str = ""


def check_mode(mode: str) -> None:
    """Raise `ValueError` for an unknown extraction mode."""
    if mode not in get_args(ExtractMode):
        raise ValueError(f"extract must be one of {', '.join(get_args(ExtractMode))}; got '{mode}'")


def extract_answer(completion: str, mode: ExtractMode) -> Extracted:
    r"""The answer of a completion.

    - `answer_tag`: inside `<answer>...</answer>`; each tag exactly once in the whole completion, after the reasoning if there is any.
      If it holds `\boxed{}`, the answer is the content of the last one.
    - `boxed`: the last `\boxed{...}` after the reasoning, braces balanced.
    - `last_number`: the last number after the reasoning.
    - `auto`: `answer_tag` if any answer tag occurs, else `boxed` if a box occurs, else `last_number`.

    The reasoning ends at the last `</think>`; an opened and never closed `<think>` has no answer after it.
    """
    after = _after_reasoning(completion)
    if after is None:
        return Extracted(None, "the reasoning is not closed")
    if mode == "auto":
        mode = "answer_tag" if "<answer>" in completion or "</answer>" in completion else "boxed" if r"\boxed" in after else "last_number"
    if mode == "answer_tag":
        return _from_tag(completion, after)
    if mode == "boxed":
        boxed = last_boxed(after)
        return Extracted(boxed) if boxed else Extracted(None, r"no \boxed{...} after the reasoning")
    numbers = NUMBER.findall(after)
    return Extracted(numbers[-1]) if numbers else Extracted(None, "no number after the reasoning")


def _after_reasoning(completion: str) -> str | None:
    _, closed, after = completion.rpartition("</think>")
    if "<think>" in after:  # opened, or opened again, and not closed
        return None
    return after if closed else completion


def _from_tag(completion: str, after: str) -> Extracted:
    opened, closed = completion.count("<answer>"), completion.count("</answer>")
    if (opened, closed) != (1, 1):
        return Extracted(None, f"expected one <answer> and one </answer>, found {opened} and {closed}")
    _, found, rest = after.partition("<answer>")
    inside, ended, _ = rest.partition("</answer>")
    if not (found and ended):
        return Extracted(None, "the answer stands inside the reasoning, or </answer> before <answer>")
    inside = inside.strip()
    answer = last_boxed(inside) if r"\boxed" in inside else inside
    return Extracted(answer) if answer else Extracted(None, "the answer is empty")


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` of the text, stripped; None without one or when its braces are not balanced."""
    _, found, rest = text.rpartition(r"\boxed")
    rest = rest.lstrip()
    if not found or not rest.startswith("{"):
        return None
    depth = 0
    for position, character in enumerate(rest):
        if character == "{" and not _escaped(rest, position):
            depth += 1
        elif character == "}" and not _escaped(rest, position):
            depth -= 1
            if depth == 0:
                return rest[1:position].strip()
    return None


def _escaped(text: str, position: int) -> bool:
    return position > 0 and text[position - 1] == "\\"
