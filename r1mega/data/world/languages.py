"""Two languages for one thought: a text is a list of words and literals, and each word can be written in either language.

English is written in Latin letters, Chinese in Han characters, so that which language a word is in can be told exactly, by script. Numbers, formulas
and single letters are literals: the same in both, words of neither.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

LANGUAGES = ("en", "zh")

_CHINESE: Mapping[str, str] = {
    # chains of thought
    "ones": "个", "tens": "十", "so": "故", "no": "不", "yes": "对", "left": "余", "above": "高", "is": "是", "back": "倒", "see": "看",
    # about requests
    "asked": "问", "say": "说", "bad": "坏", "fine": "好", "refuse": "拒", "help": "助", "why": "因",
}


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a thought: how it is written in each language."""

    en: str
    zh: str

    def written(self, language: str) -> str:
        return self.zh if language == "zh" else self.en


Piece = Word | str  # a str is a literal
Chooser = Callable[[int], Sequence[str]]  # for so many words, the language of each


def word(english: str) -> Word:
    """A word of the chains of thought by its English form. Raises `KeyError` for one that is not in the list."""
    return Word(english, _CHINESE[english])


def write(pieces: Sequence[Piece], language: str | Sequence[str]) -> str:
    """The text, all in one language or with a language for each word, in order.

    Chinese characters stand without spaces, but a letter is always written after one: a tokenizer then has one token for it, in either language.

    Raises `ValueError` when there are more or fewer languages than words.
    """
    count = sum(isinstance(piece, Word) for piece in pieces)
    chosen = [language] * count if isinstance(language, str) else language
    if len(chosen) != count:
        raise ValueError(f"{len(chosen)} languages for {count} words")
    languages = iter(chosen)
    text, before = "", ""
    for piece in pieces:
        script = next(languages) if isinstance(piece, Word) else "literal"
        spaced = text and ("zh" not in (script, before) or (isinstance(piece, str) and piece[0].isalpha()))
        text += (" " if spaced else "") + (piece.written(script) if isinstance(piece, Word) else piece)
        before = script
    return text


def mixed(language: str, rate: float, generator: random.Random) -> Chooser:
    """A chooser that writes each word in the other language with probability `rate`, and at least one word always."""
    other = "en" if language == "zh" else "zh"

    def choose(count: int) -> Sequence[str]:
        languages = [other if generator.random() < rate else language for _ in range(count)]
        if count and other not in languages:
            languages[generator.randrange(count)] = other
        return languages

    return choose


def write_mixed(pieces: Sequence[Piece], chooser: Chooser) -> str:
    """The text with each word in the language that the chooser gives it."""
    return write(pieces, chooser(sum(isinstance(piece, Word) for piece in pieces)))
