"""What a problem of any family can do."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

from r1mega.data.world.languages import Piece

Thought = tuple[Sequence[Piece], str]  # a chain of thought, and the answer it leads to


class Problem(ABC):
    """One problem, as it is posed. Subclasses are frozen dataclasses; posing it another way keeps its id and its answer."""

    family: ClassVar[str]
    domain: ClassVar[str]

    @classmethod
    @abstractmethod
    def every(cls, max_operand: int) -> Iterator[Self]:
        """All problems of the family, one per id, in a fixed order. `max_operand` bounds the numbers of families that have a bound to set."""

    @property
    @abstractmethod
    def id(self) -> str:
        """The problem's identity: begins with the family, the same for all ways to pose it."""

    @property
    @abstractmethod
    def answer(self) -> str: ...

    @property
    def quoted(self) -> bool:
        """Whether chains about other problems may state this one, so that it can never be held out."""
        return False

    def posed(self, generator: random.Random) -> Self:  # noqa: ARG002  # a family that can be posed in several ways overrides this
        """The same problem, posed in one of its ways at random."""
        return self

    @abstractmethod
    def question(self, language: str) -> str: ...

    @abstractmethod
    def think(self, slip: random.Random | None = None) -> Thought:
        """The chain and the answer it leads to: the right one, or with `slip` a wrong one that follows from an error in the chain."""

    @abstractmethod
    def near_miss(self, generator: random.Random) -> str:
        """A wrong answer of the right kind."""


def other_number(answer: int, generator: random.Random) -> int:
    """Another non-negative number close to the answer, or with one digit wrong."""
    digits = str(answer)
    while True:
        if generator.random() < 0.5:
            candidate = answer + generator.choice((-10, -2, -1, 1, 2, 10))
        else:
            place = generator.randrange(len(digits))
            candidate = int(digits[:place] + generator.choice("0123456789") + digits[place + 1:])
        if candidate >= 0 and candidate != answer:
            return candidate
