"""Problems of logic: who stands where in an order of three, and truth handed on along a chain of statements."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import ClassVar, Self

from r1mega.data.world.languages import Piece, word
from r1mega.data.world.problem import Problem, Thought

_NAMES = "ABCDEGHK"  # single letters are words of no language; T and F are truth values
_ASKED = {"en": ("top", "middle", "bottom"), "zh": ("顶", "中", "底")}


@dataclass(frozen=True)
class Order(Problem):
    """If K above M, H below M: who is at the top? "see K above M above H so K"."""

    family: ClassVar[str] = "order"
    domain: ClassVar[str] = "logic"
    ranking: tuple[str, str, str]  # from the top
    asked: int  # place from the top, 0 to 2
    lower_first: bool = False  # the statement about the lower two comes first
    turned: tuple[bool, bool] = (False, False)  # which statements say "below"

    @classmethod
    def every(cls, max_operand: int) -> Iterator[Self]:  # noqa: ARG003
        return (cls((x, y, z), asked) for x, y, z in permutations(_NAMES, 3) for asked in range(3))

    @property
    def id(self) -> str:
        return f"order:{''.join(self.ranking)}/{_ASKED['en'][self.asked]}"

    @property
    def answer(self) -> str:
        return self.ranking[self.asked]

    def posed(self, generator: random.Random) -> Self:
        lower_first, upper, lower = (generator.random() < 0.5 for _ in range(3))
        return replace(self, lower_first=lower_first, turned=(upper, lower))

    def question(self, language: str) -> str:
        above, below = ("高 ", "低 ") if language == "zh" else (" above ", " below ")
        pairs = (self.ranking[:2], self.ranking[1:])
        upper, lower = (f"{y}{below}{x}" if turned else f"{x}{above}{y}" for (x, y), turned in zip(pairs, self.turned, strict=True))
        statements = f"{lower}, {upper}" if self.lower_first else f"{upper}, {lower}"
        return f"若 {statements}:{_ASKED['zh'][self.asked]}?" if language == "zh" else f"if {statements}: {_ASKED['en'][self.asked]}?"

    def think(self, slip: random.Random | None = None) -> Thought:
        x, y, z = self.ranking
        if slip:
            x, y, z = slip.choice([other for other in permutations(self.ranking) if other[self.asked] != self.answer])
        answer = (x, y, z)[self.asked]
        return [word("see"), x, word("above"), y, word("above"), z, word("so"), answer], answer

    def near_miss(self, generator: random.Random) -> str:
        return generator.choice([name for name in self.ranking if name != self.answer])


@dataclass(frozen=True)
class Truth(Problem):
    """If A is T, B not A, C is B: what is C? "see A is T so B is F so C is F". T stands for true, F for false."""

    family: ClassVar[str] = "truth"
    domain: ClassVar[str] = "logic"
    names: tuple[str, ...]  # two or three; the last is asked for
    first: bool  # what the first name is
    negated: tuple[bool, ...]  # whether each further name is the opposite of the one before

    @classmethod
    def every(cls, max_operand: int) -> Iterator[Self]:  # noqa: ARG003
        return (cls(names, first, tuple(negated)) for count in (2, 3) for names in permutations(_NAMES, count)
                for first, *negated in product((False, True), repeat=count))

    @property
    def id(self) -> str:
        return f"truth:{''.join(self.names)}/{_truth(self.first)}{''.join('!' if opposite else '=' for opposite in self.negated)}"

    @property
    def answer(self) -> str:
        return _truth(self.first ^ (sum(self.negated) % 2 == 1))

    def question(self, language: str) -> str:
        begin, same, opposite = ("若", "是 ", "反 ") if language == "zh" else ("if", " is ", " not ")
        text = f"{begin} {self.names[0]}{same}{_truth(self.first)}"
        for before, name, negated in zip(self.names, self.names[1:], self.negated, strict=False):
            text += f", {name}{opposite if negated else same}{before}"
        return f"{text}: {self.names[-1]}?"

    def think(self, slip: random.Random | None = None) -> Thought:
        off_at = slip.randrange(len(self.negated)) if slip else None
        value = self.first
        pieces: list[Piece] = [word("see"), self.names[0], word("is"), _truth(value)]
        for link, (name, negated) in enumerate(zip(self.names[1:], self.negated, strict=True)):
            value ^= negated ^ (link == off_at)
            pieces += [word("so"), name, word("is"), _truth(value)]
        return pieces, _truth(value)

    def near_miss(self, generator: random.Random) -> str:  # noqa: ARG002  # there is one only
        return "F" if self.answer == "T" else "T"


def _truth(value: bool) -> str:
    return "T" if value else "F"
