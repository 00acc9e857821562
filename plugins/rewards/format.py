"""Whether a completion keeps the reasoning format: `<think>...</think><answer>...</answer>`, or `<think>...</think>` and a plain answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.types import RewardSample, Score

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_ANSWERS = ("tag", "text")


@dataclass(frozen=True)
class FormatConfig:
    """What surrounds the tags."""

    think_in_prompt: bool = False  # the template has already opened <think>: the completion starts inside the reasoning
    allow_prefix: bool = False  # text before <think> is allowed
    empty_reasoning: bool = False  # an empty block is allowed: trivial queries have no chain of thought (paper v1 section 2.3.3)
    answer: Literal["tag", "text"] = "tag"  # tag: in <answer>...</answer>, as R1-Zero; text: all that follows the reasoning, as R1 (template=r1)

    def __post_init__(self) -> None:
        if self.answer not in _ANSWERS:
            raise ValueError(f"answer='{self.answer}': expected one of {', '.join(_ANSWERS)}")


class Format:
    """1 for one non-empty reasoning block and then one non-empty answer block and nothing else, otherwise 0."""

    version = "1"

    def __init__(self, config: FormatConfig) -> None:
        self._config = config

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [self._one(sample.completion) for sample in samples]

    def _one(self, completion: str) -> Score:
        fault = self._fault("<think>" + completion if self._config.think_in_prompt else completion)
        return Score(0.0, explanation=fault) if fault else Score(1.0)

    def _fault(self, text: str) -> str:
        """What is wrong with the format; empty when nothing is."""
        if self._config.answer == "text":
            if "<answer>" in text or "</answer>" in text:
                return "there is an answer tag; the answer is what follows </think>"
            text = text.replace("</think>", "</think><answer>") + "</answer>"
        for tag in _TAGS:
            if (count := text.count(tag)) != 1:
                return f"{tag} occurs {count} times"
        places = [text.index(tag) for tag in _TAGS]
        if places != sorted(places):
            return "the tags are out of order"
        think, unthink, answer, unanswer = places
        prefix, reasoning = text[:think], text[think + len("<think>"):unthink]
        between, inside = text[unthink + len("</think>"):answer], text[answer + len("<answer>"):unanswer]
        if prefix.strip() and not self._config.allow_prefix:
            return "text before <think>"
        if not reasoning.strip() and not self._config.empty_reasoning:
            return "the reasoning is empty"
        if between.strip():
            return "text between </think> and <answer>"
        if not inside.strip():
            return "the answer is empty"
        return "text after </answer>" if text[unanswer + len("</answer>"):].strip() else ""


@hookimpl
def register_rewards(register: Register) -> None:
    register("format", Format, config=FormatConfig)
