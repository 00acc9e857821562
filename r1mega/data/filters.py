"""Which samples are fit to learn from: the paper's filters on chains of thought (R1_RECIPE 2.1 and 2.4), as pure functions.

A filter sees one (reasoning, response) and says what is wrong with it, or nothing. Its name is the reason a drop is counted under. Limits the
paper does not publish are ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from r1mega.data.language import DEFAULT, LanguageDetector, content_words, language_share
from r1mega.errors import ConfigError


@dataclass(frozen=True)
class FilterConfig:
    """The limit of every filter; 0 (or false) switches it off."""

    reasoning: bool = True  # a sample without reasoning is dropped
    min_language_share: float = 0.9  # of the reasoning's words, in the prompt's language
    max_paragraph_chars: int = 4000  # of one paragraph of the reasoning; a paragraph ends at a blank line
    code_blocks: bool = True  # a reasoning with a fenced block of code is dropped
    repetition_ngram: int = 8  # words
    max_repetition: float = 0.3  # share of the reasoning's n-grams that stood there before
    max_line_repeats: int = 6  # how often one line (of more than `short_line` characters) may stand in the reasoning
    short_line: int = 8
    max_chars: int = 0  # of reasoning and response together

    def __post_init__(self) -> None:
        for name in ("min_language_share", "max_repetition"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"filters.{name}={getattr(self, name)}: must be between 0 and 1")
        for name in ("max_paragraph_chars", "max_line_repeats", "short_line", "max_chars"):
            if getattr(self, name) < 0:
                raise ConfigError(f"filters.{name}={getattr(self, name)}: must be at least 0 (0 is off)")
        if self.repetition_ngram < 1:
            raise ConfigError(f"filters.repetition_ngram={self.repetition_ngram}: must be at least 1")


@dataclass(frozen=True, slots=True)
class Draft:
    """What a filter looks at."""

    reasoning: str
    response: str
    language: str = "en"


_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_BLANK = re.compile(r"\n[ \t]*\n")


def empty(draft: Draft, config: FilterConfig) -> bool:
    """No response, or no reasoning where one is wanted."""
    return not draft.response.strip() or (config.reasoning and not draft.reasoning.strip())


def too_long(draft: Draft, config: FilterConfig) -> bool:
    """More characters than allowed, reasoning and response together."""
    return bool(config.max_chars) and len(draft.reasoning) + len(draft.response) > config.max_chars


def mixed_language(draft: Draft, config: FilterConfig, detector: LanguageDetector = DEFAULT) -> bool:
    """Too few words of the reasoning are of the prompt's language; formulas alone mix nothing."""
    return bool(config.min_language_share) and language_share(draft.reasoning, draft.language, detector=detector) < config.min_language_share


def long_paragraph(draft: Draft, config: FilterConfig) -> bool:
    """The reasoning has a paragraph nobody would read."""
    return bool(config.max_paragraph_chars) and longest_paragraph(draft.reasoning) > config.max_paragraph_chars


def code_block(draft: Draft, config: FilterConfig) -> bool:
    """Fenced code in the reasoning; in the response it may be what was asked for."""
    return config.code_blocks and _FENCE.search(draft.reasoning) is not None


def repetition(draft: Draft, config: FilterConfig) -> bool:
    """The reasoning goes in circles: too large a share of repeated n-grams, or one line again and again."""
    if config.max_repetition and repetition_share(draft.reasoning, config.repetition_ngram) > config.max_repetition:
        return True
    return bool(config.max_line_repeats) and line_repeats(draft.reasoning, config.short_line) > config.max_line_repeats


FILTERS: Mapping[str, Callable[[Draft, FilterConfig], bool]] = {
    "empty": empty, "too_long": too_long, "mixed_language": mixed_language, "long_paragraph": long_paragraph, "code_block": code_block,
    "repetition": repetition}
"""All filters by their reason, in the order they are tried."""


def why_unfit(draft: Draft, config: FilterConfig, detector: LanguageDetector = DEFAULT) -> str:
    """The reason of the first filter that rejects the draft, or ""."""
    for reason, rejects in FILTERS.items():
        if mixed_language(draft, config, detector) if rejects is mixed_language else rejects(draft, config):
            return reason
    return ""


def longest_paragraph(text: str) -> int:
    """Characters of the longest paragraph, without the spaces around it."""
    return max(len(paragraph.strip()) for paragraph in _BLANK.split(text))


def repetition_share(text: str, n: int) -> float:
    """1 - distinct / all n-grams of words: 0 without any repeated n-gram, towards 1 for a loop. A text of fewer than 2 n words has 0."""
    words = content_words(text)
    if len(words) < 2 * n:
        return 0.0
    total = len(words) - n + 1
    return 1.0 - len({tuple(words[i: i + n]) for i in range(total)}) / total


def line_repeats(text: str, short: int) -> int:
    """How often the commonest line of more than `short` characters stands in the text."""
    counts = Counter(line for found in text.splitlines() if len(line := " ".join(found.split())) > short)
    return max(counts.values(), default=0)
