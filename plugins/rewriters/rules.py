r"""Cold-start data by rules: a trace becomes tidy reasoning and a summary in words, and the answer stays what it was.

R1's format is reasoning, then a summary for the reader (paper v1 section 2.3.1). R1-Zero's correct traces have the first and, as the second, often
the bare answer. Here the reasoning loses stray spaces, blank lines and lines said twice in a row; a bare answer gets a sentence in the question's
language. What a reader would take for the answer is read before and after; where the two differ, the sample is not rewritten.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from r1mega import hookimpl
from r1mega.data.language import content_words
from r1mega.data.records import SampleRecord
from r1mega.errors import ConfigError
from r1mega.hookspecs import Register
from r1mega.rewards.answers import NUMBER, extract_answer

SUMMARIES = {"en": "The answer is {answer}.", "zh": "答案是{answer}。", "de": "Die Antwort ist {answer}.", "fr": "La réponse est {answer}.",
             "es": "La respuesta es {answer}."}
_LETTER = re.compile(r"[^\W\d_]")
_FORMULA = re.compile(r"[=+*/^\\<>_{}×÷√|]|(?<![^\W\d_])(?![aI])[A-Za-z](?![^\W\d_])")  # signs, or a single letter, which is a name
_SPACES = re.compile(r"[ \t\f\v\u00a0]+")
_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class RulesConfig:
    """How a summary is worded."""

    summary: dict[str, str] = field(default_factory=lambda: dict(SUMMARIES))  # by language; {answer} is replaced
    boxed: Literal["when_needed", "always"] = "when_needed"  # \boxed{} around the answer; needed where the sentence alone does not give it back
    keep_summary_words: int = 12  # a response of at least so many words that states an answer stays; 0: every response is replaced

    def __post_init__(self) -> None:
        for language, text in self.summary.items():
            if text.count("{answer}") != 1:
                raise ConfigError(f"rewriter.summary.{language}: expected {{answer}} once, got {text!r}")
        if self.keep_summary_words < 0:
            raise ConfigError(f"rewriter.keep_summary_words={self.keep_summary_words}: must be at least 0")


class Rules:
    """Tidies the reasoning and states the final answer in a sentence of the question's language."""

    version: ClassVar[str] = "1"

    def __init__(self, config: RulesConfig) -> None:
        self._config = config

    def rewrite(self, samples: Sequence[SampleRecord]) -> list[SampleRecord | None]:
        """See `hookspecs.Rewriter`. None: no single answer to state, no wording for the language, or nothing left of the reasoning."""
        return [self._one(sample) for sample in samples]

    def _one(self, sample: SampleRecord) -> SampleRecord | None:
        reasoning, response = tidy(sample.reasoning), tidy(sample.response)
        answer = stated_answer(response)
        if answer is None or (sample.reasoning.strip() and not reasoning):
            return None
        words = len(content_words(response))
        if not self._config.keep_summary_words or words < self._config.keep_summary_words:
            summary = self._summary(answer, sample.language)
        elif self._config.boxed == "always" and "\\boxed" not in response:
            summary = f"{response}\n\n\\boxed{{{answer}}}"
        else:
            summary = response
        if summary is None or stated_answer(summary) != answer:
            return None
        return replace(sample, reasoning=reasoning, response=summary)

    def _summary(self, answer: str, language: str) -> str | None:
        wording = self._config.summary.get(language)
        if wording is None:
            return None
        plain = wording.replace("{answer}", answer)
        if self._config.boxed == "when_needed" and stated_answer(plain) == answer:
            return plain
        return wording.replace("{answer}", f"\\boxed{{{answer}}}")


def tidy(text: str) -> str:
    """`text` without double and trailing spaces, lines that repeat the one before, and more than one blank line in a row."""
    lines: list[str] = []
    for found in text.replace("\r\n", "\n").split("\n"):
        line = _SPACES.sub(" ", found).strip()
        if not line or line != next((earlier for earlier in reversed(lines) if earlier), None):
            lines.append(line)
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()


def stated_answer(response: str) -> str | None:
    r"""The one answer that a response states, or None where there is none or more than one.

    In this order: the content of the last `\boxed{}`; in a sentence of words the one number it names; else the text itself if it is one line of at
    most four words (an expression, an option, a name).
    """
    if "\\boxed" in response:
        return extract_answer(response, "boxed").answer
    if _LETTER.search(response) and not _FORMULA.search(NUMBER.sub(" ", response)):
        numbers = list(dict.fromkeys(NUMBER.findall(response)))
        if numbers:
            return numbers[0] if len(numbers) == 1 else None
    text = response.strip().rstrip(".。").rstrip()
    return text if text and "\n" not in text and len(text.split()) <= 4 and len(content_words(text)) <= 12 else None


@hookimpl
def register_rewriters(register: Register) -> None:
    register("rules", Rules, config=RulesConfig)
