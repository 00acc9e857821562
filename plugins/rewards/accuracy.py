"""Whether a completion's answer equals the reference: exact comparison first, math-verify for the rest."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from r1mega import hookimpl
from r1mega.hookspecs import Register
from r1mega.rewards.answers import NUMBER, ExtractMode, check_mode, extract_answer
from r1mega.rewards.numbers import Number, clean, equal, parse_number
from r1mega.types import RewardSample, Score

_ARITHMETIC = re.compile(r"(?:[\d\s.+\-−*/^(){}!]|sqrt|pi)*")
_OPERATOR = re.compile(r"[\d)}\]!]\s*[-−+*/×÷!]|\^|sqrt|\\(?:times|cdot|div|pm|d?binom|sum|prod)")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s'-]+[^\W\d_]+)*|[A-Z]")  # a word, several, or an option letter
_GLUED = re.compile(r"[A-Za-z_]+\d[\w.,]*")  # "a9" is a name, not the number 9
_OPTION = re.compile(r"[(\[][a-z][)\]]")
# Expressions whose value has too many digits to compute: an exponent of five digits or more, a power of a power of numbers, a large factorial.
_HUGE = re.compile(r"(?:\^|\*\*)[\s{(]*[-+]?\d{5}|\d[eE][-+]?\d{4}|(?:\^|\*\*)[\s{(]*\d+[\s{(]*(?:\^|\*\*)|\d{4}\s*!|!\s*!")


@dataclass(frozen=True)
class AccuracyConfig:
    """Where the answer must stand, and how much of it is read."""

    extract: ExtractMode = "answer_tag"
    max_answer_chars: int = 1000  # a longer answer scores 0
    allow_arithmetic: bool = False  # whether 3+4, 6/2 or 2^{10} counts where the reference is a number; if so, repeating "3+4" solves "3+4"

    def __post_init__(self) -> None:
        check_mode(self.extract)
        if self.max_answer_chars < 1:
            raise ValueError(f"max_answer_chars must be at least 1, got {self.max_answer_chars}")


class Accuracy:
    """1 if the answer, found strictly where it must stand, equals the reference answer, otherwise 0."""

    version = "2"

    def __init__(self, config: AccuracyConfig) -> None:
        self._config = config
        self._verify = _math_verify()

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: RewardSample) -> Score:
        if sample.answer is None or not sample.answer.strip():
            raise ValueError(f"the sample has no reference answer to compare with (prompt {sample.prompt[:80]!r}); "
                             "use a task that gives answers, or leave the reward 'accuracy' out")
        found = extract_answer(sample.completion, self._config.extract)
        if found.answer is None:
            return Score(0.0, explanation=found.reason)
        if len(found.answer) > self._config.max_answer_chars:
            return Score(0.0, explanation=f"the answer has {len(found.answer)} characters, more than {self._config.max_answer_chars}")
        return self._compare(found.answer, sample.answer)

    def _compare(self, answer: str, reference: str) -> Score:
        if _folded(answer) == _folded(reference):
            return Score(1.0)
        expected = parse_number(reference)
        if expected is not None:
            return self._compare_number(answer, reference, expected)
        if _WORDS.fullmatch(clean(reference)):
            return _different(answer, reference)  # words are equal or not; as letters of a formula "no" would equal "on"
        return self._compare_expression(answer, reference)

    def _compare_number(self, answer: str, reference: str, expected: Number) -> Score:
        """A numeric problem has one answer: a number, an expression that is one as a whole, or a sentence that names exactly one number.

        math-verify would take the last number it finds; naming several and being right with one must not pay.
        """
        left, equation, right = answer.replace("**", "^").strip("^ \n").rpartition("=")
        if "=" in left:
            return Score(0.0, explanation="the answer is a chain of equations; state the value alone")
        number = parse_number(right)
        if number is not None and not (equation and "," in left):
            return self._equal(number, expected, answer, reference)
        if _ARITHMETIC.fullmatch(right) or "\\" in right:
            if _OPERATOR.search(right) and not self._config.allow_arithmetic:
                return _unevaluated(answer)
            return self._compare_expression(right, reference)
        named = {number for text in NUMBER.findall(_GLUED.sub(" ", answer)) if (number := parse_number(text)) is not None}
        if len(named) != 1:
            return Score(0.0, explanation=f"the answer names {len(named)} numbers; expected one")
        return self._equal(named.pop(), expected, answer, reference)

    def _equal(self, number: Number, expected: Number, answer: str, reference: str) -> Score:
        if number.unevaluated and not expected.unevaluated and not self._config.allow_arithmetic:
            return _unevaluated(answer)
        return Score(1.0) if equal(number, expected) else _different(answer, reference)

    def _compare_expression(self, answer: str, reference: str) -> Score:
        if _HUGE.search(answer):
            return Score(0.0, explanation=f"the answer {answer[:80]!r} is too large to evaluate")
        return Score(1.0) if self._verify(answer, reference) else _different(answer, reference)


def _different(answer: str, reference: str) -> Score:
    return Score(0.0, explanation=f"{answer[:80]!r} is not {reference[:80]!r}")


def _unevaluated(answer: str) -> Score:
    return Score(0.0, explanation=f"the answer {answer[:80]!r} still has to be computed")


def _folded(text: str) -> str:
    """For comparing texts: case, spacing and the brackets of an option letter do not count."""
    text = " ".join(clean(text).split()).casefold()
    return text[1:-1] if _OPTION.fullmatch(text) else text


def _math_verify() -> Callable[[str, str], bool]:
    """math-verify's comparison (answer, reference), each read as one LaTeX expression as a whole.

    Its own timeouts are off: they need SIGALRM, and the pool's deadline covers them.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns about the timeouts that are off
    off: Any = None
    whole = [LatexExtractionConfig()]

    def parsed(text: str) -> list[Any]:
        return list(parse(f"${text}$", extraction_config=whole, parsing_timeout=off))

    def parsed_reference(text: str) -> list[Any]:
        return list(parse(text, parsing_timeout=off)) if "$" in clean(text) else parsed(clean(text))

    reference_of = functools.lru_cache(maxsize=4096)(parsed_reference)
    parsed(r"\frac{1}{2}")  # builds the grammar now rather than under the first call's deadline

    def same(answer: str, reference: str) -> bool:
        return bool(verify(reference_of(reference), parsed(clean(answer).replace("$", " ")), timeout_seconds=off))

    return same


@hookimpl
def register_rewards(register: Register) -> None:
    register("accuracy", Accuracy, config=AccuracyConfig)
