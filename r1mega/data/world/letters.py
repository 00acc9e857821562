"""Problems with strings of letters, which are written apart so that a letter is a token: how often, which place, which place from the end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from typing import ClassVar, Self

from r1mega.data.world.languages import Piece, word
from r1mega.data.world.problem import Problem, Thought

_LETTERS = "ABCDEG"
_FEW = "ABC"  # so that they recur


@dataclass(frozen=True)
class Count(Problem):
    """How often is A in B A C A B? "see B no A yes 1 C no A yes 2 B no so 2"."""

    family: ClassVar[str] = "count"
    domain: ClassVar[str] = "code"
    letters: tuple[str, ...]
    wanted: str

    @classmethod
    def every(cls, max_operand: int) -> Iterator[Self]:  # noqa: ARG003
        return (cls(letters, wanted) for letters in product(_FEW, repeat=5) for wanted in _FEW)

    @property
    def id(self) -> str:
        return f"count:{self.wanted}/{''.join(self.letters)}"

    @property
    def answer(self) -> str:
        return str(self.letters.count(self.wanted))

    def question(self, language: str) -> str:
        text = " ".join(self.letters)
        return f"数 {self.wanted}: {text}?" if language == "zh" else f"count {self.wanted} in {text}?"

    def think(self, slip: random.Random | None = None) -> Thought:
        off_at = slip.randrange(len(self.letters)) if slip else None
        found = 0
        pieces: list[Piece] = [word("see")]
        for place, letter in enumerate(self.letters):
            if (letter == self.wanted) ^ (place == off_at):
                found += 1
                pieces += [letter, word("yes"), str(found)]
            else:
                pieces += [letter, word("no")]
        return [*pieces, word("so"), str(found)], str(found)

    def near_miss(self, generator: random.Random) -> str:
        return generator.choice([str(count) for count in range(len(self.letters) + 1) if str(count) != self.answer])


@dataclass(frozen=True)
class Letter(Problem):
    """Which is letter 3 of B A D C? "1 is B 2 is A 3 is D so D"."""

    family: ClassVar[str] = "letter"
    domain: ClassVar[str] = "code"
    letters: tuple[str, ...]  # distinct
    place: int  # from 1

    @classmethod
    def every(cls, max_operand: int) -> Iterator[Self]:  # noqa: ARG003
        return (cls(letters, place) for letters in permutations(_LETTERS, 4) for place in range(1, 5))

    @property
    def id(self) -> str:
        return f"letter:{self.place}/{''.join(self.letters)}"

    @property
    def answer(self) -> str:
        return self.letters[self.place - 1]

    def question(self, language: str) -> str:
        text = " ".join(self.letters)
        return f"第{self.place}字: {text}?" if language == "zh" else f"letter {self.place} of {text}?"

    def think(self, slip: random.Random | None = None) -> Thought:
        walked = list(self.letters)
        if slip and self.place < len(walked):
            del walked[slip.randrange(self.place)]  # one is passed over
        elif slip:
            again = slip.randrange(self.place - 1)
            walked.insert(again, walked[again])  # one is read twice
        pieces: list[Piece] = []
        for number, letter in enumerate(walked[:self.place], 1):
            pieces += [str(number), word("is"), letter]
        answer = walked[self.place - 1]
        return [*pieces, word("so"), answer], answer

    def near_miss(self, generator: random.Random) -> str:
        return generator.choice([letter for letter in self.letters if letter != self.answer])


@dataclass(frozen=True)
class Reverse(Problem):
    """B A D C reversed, letter 2? "back C D A B so 2 is D"."""

    family: ClassVar[str] = "reverse"
    domain: ClassVar[str] = "code"
    letters: tuple[str, ...]  # distinct
    place: int  # from the end, from 1

    @classmethod
    def every(cls, max_operand: int) -> Iterator[Self]:  # noqa: ARG003
        return (cls(letters, place) for letters in permutations(_LETTERS, 4) for place in range(1, 5))

    @property
    def id(self) -> str:
        return f"reverse:{self.place}/{''.join(self.letters)}"

    @property
    def answer(self) -> str:
        return self.letters[-self.place]

    def question(self, language: str) -> str:
        text = " ".join(self.letters)
        return f"倒 {text}:{self.place}?" if language == "zh" else f"reverse {text}: {self.place}?"

    def think(self, slip: random.Random | None = None) -> Thought:
        backwards = list(reversed(self.letters))
        at = self.place - 1
        if slip:
            other = slip.choice([place for place in range(len(backwards)) if place != at])
            backwards[at], backwards[other] = backwards[other], backwards[at]
        answer = backwards[at]
        return [word("back"), " ".join(backwards), word("so"), str(self.place), word("is"), answer], answer

    def near_miss(self, generator: random.Random) -> str:
        return generator.choice([letter for letter in self.letters if letter != self.answer])
