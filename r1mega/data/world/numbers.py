"""Problems with numbers: sums and differences digit by digit, and countdown, where a pair that makes the target has to be found by trying."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Self

from r1mega.data.world.languages import Piece, word
from r1mega.data.world.problem import Problem, Thought, other_number

_PLACES = (word("ones"), word("tens"))


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """The digits of two numbers below 100, ones first."""
    return [(a % 10, b % 10), (a // 10, b // 10)] if max(a, b) > 9 else [(a, b)]


def _slipped(value: int, generator: random.Random, highest: int | None = None) -> int:
    """One more or one less: still a value that the column could have."""
    if value <= 0:
        return 1
    return value - 1 if value == highest or generator.random() < 0.5 else value + 1


@dataclass(frozen=True)
class Add(Problem):
    """17+25: "ones 7+5=12 tens 1+1+2=4 so 42". Operands below 100; a carry is added first in the next column."""

    family: ClassVar[str] = "add"
    domain: ClassVar[str] = "math"
    a: int
    b: int

    @classmethod
    def every(cls, max_operand: int) -> Iterator[Self]:
        return (cls(low, high) for low in range(max_operand + 1) for high in range(low, max_operand + 1))

    @property
    def id(self) -> str:
        return f"add:{min(self.a, self.b)}+{max(self.a, self.b)}"

    @property
    def answer(self) -> str:
        return str(self.a + self.b)

    @property
    def quoted(self) -> bool:
        return self.a < 10 and self.b < 10  # columns are such sums

    def posed(self, generator: random.Random) -> Self:
        return type(self)(self.b, self.a) if generator.random() < 0.5 else self

    def question(self, language: str) -> str:
        return f"{self.a}+{self.b}是多少?" if language == "zh" else f"what is {self.a}+{self.b}?"

    def think(self, slip: random.Random | None = None) -> Thought:
        columns = _columns(self.a, self.b)
        off_at = slip.randrange(len(columns)) if slip else None
        pieces: list[Piece] = []
        carry = total = 0
        for place, (x, y) in enumerate(columns):
            value = carry + x + y
            statement = f"{f'{carry}+' if carry else ''}{x}+{y}"
            if slip and place == off_at:
                value = _slipped(value, slip)
            pieces += [_PLACES[place], f"{statement}={value}"]
            last = place == len(columns) - 1
            total += (value if last else value % 10) * 10**place
            carry = value // 10
        return [*pieces, word("so"), str(total)], str(total)

    def near_miss(self, generator: random.Random) -> str:
        return str(other_number(self.a + self.b, generator))


@dataclass(frozen=True)
class Subtract(Problem):
    """42-17: "ones 12-7=5 tens 4-1-1=2 so 25". Never negative; ten is borrowed into the ones and taken off the tens."""

    family: ClassVar[str] = "subtract"
    domain: ClassVar[str] = "math"
    a: int
    b: int

    @classmethod
    def every(cls, max_operand: int) -> Iterator[Self]:
        return (cls(high, low) for low in range(max_operand + 1) for high in range(low, max_operand + 1))

    @property
    def id(self) -> str:
        return f"subtract:{self.a}-{self.b}"

    @property
    def answer(self) -> str:
        return str(self.a - self.b)

    @property
    def quoted(self) -> bool:
        return self.a < 20 and self.b < 10  # columns are such differences

    def question(self, language: str) -> str:
        return f"{self.a}-{self.b}是多少?" if language == "zh" else f"what is {self.a}-{self.b}?"

    def think(self, slip: random.Random | None = None) -> Thought:
        columns = _columns(self.a, self.b)
        off_at = slip.randrange(len(columns)) if slip else None
        pieces: list[Piece] = []
        borrowed = total = 0
        for place, (x, y) in enumerate(columns):
            last = place == len(columns) - 1
            statement, value = f"{x}-{y}{'-1' if borrowed else ''}", x - y - borrowed
            borrowed = int(value < 0 and not last)
            if borrowed:
                statement, value = f"1{statement}", value + 10
            if slip and place == off_at:
                value = _slipped(value, slip, highest=9)
            pieces += [_PLACES[place], f"{statement}={value}"]
            total += value * 10**place
        return [*pieces, word("so"), str(total)], str(total)

    def near_miss(self, generator: random.Random) -> str:
        return str(other_number(self.a - self.b, generator))


@dataclass(frozen=True)
class Countdown(Problem):
    """Two of three digits make the target; which is left? 3,5,8 make 11: "3+5=8 no 3+8=11 yes left 5"."""

    family: ClassVar[str] = "countdown"
    domain: ClassVar[str] = "math"
    numbers: tuple[int, int, int]  # distinct, so that one pair at most makes a target
    target: int

    @classmethod
    def every(cls, max_operand: int) -> Iterator[Self]:  # noqa: ARG003  # the digits bound it
        return (cls((x, y, z), sum(pair)) for x, y, z in combinations(range(1, 10), 3) for pair in combinations((x, y, z), 2))

    @property
    def id(self) -> str:
        return f"countdown:{','.join(map(str, sorted(self.numbers)))}={self.target}"

    @property
    def answer(self) -> str:
        return str(sum(self.numbers) - self.target)

    def posed(self, generator: random.Random) -> Self:
        x, y, z = generator.sample(self.numbers, 3)
        return type(self)((x, y, z), self.target)

    def question(self, language: str) -> str:
        given = ",".join(map(str, self.numbers))
        return f"{given}得{self.target}余几?" if language == "zh" else f"{given} make {self.target} without?"

    def think(self, slip: random.Random | None = None) -> Thought:
        pairs = list(combinations(self.numbers, 2))
        chosen = slip.choice([pair for pair in pairs if sum(pair) != self.target]) if slip else None
        pieces: list[Piece] = []
        for x, y in pairs:
            value = x + y
            if slip and (x, y) == chosen:
                value = self.target
            elif slip and value == self.target:
                value = _slipped(value, slip)
            pieces.append(f"{x}+{y}={value}")
            if value == self.target:
                rest = str(sum(self.numbers) - x - y)
                return [*pieces, word("yes"), word("left"), rest], rest
            pieces.append(word("no"))
        raise ValueError(f"{self.id}: no pair makes the target")

    def near_miss(self, generator: random.Random) -> str:
        return _another(self.numbers, self.answer, generator)


def _another(options: Sequence[int], answer: str, generator: random.Random) -> str:
    return generator.choice([text for option in options if (text := str(option)) != answer])
