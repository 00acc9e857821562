"""The tiny world: integer arithmetic with a digit-wise chain of thought, small enough to learn from nothing in minutes.

Its documents are deliberately unreliable (wrong answers, missing chains, broken format), so that the base model knows how to reason but often
does not, which is what reinforcement learning is to repair.

A chain works from the ones upwards, as on paper: 17+25 is "7+5=12 c1 1+2+1=4" (c1 carries 1), 42-17 is "10+2-7=5 b1 4-1-1=2" (b1 borrows 1),
17*25 is "7*5=35 c3 7*2+1*5+3=22 c2 1*2+2=4". It quotes no whole problem but single-digit ones, and those are always training problems: no
document states a test problem anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

from r1mega import hookimpl
from r1mega.data.world import documents
from r1mega.errors import ConfigError
from r1mega.hookspecs import Register
from r1mega.split import Split, split_of, stable_fraction
from r1mega.types import Prompt

OPERATIONS = ("+", "-", "*")

Column = tuple[str, int]  # a sum of digits without its carry, and its value


@dataclass(frozen=True)
class ArithmeticConfig:
    """Which problems there are, which are held out, and how unreliable the documents about the others are."""

    operations: list[str] = field(default_factory=lambda: ["+"])  # of + - *; differences are never negative
    max_operand: int = 40
    test_fraction: float = 0.3
    split_seed: int = 0  # not the run's seed: every stage of every run must agree on what is held out
    chain_rate: float = 0.75  # share of documents that think digit by digit; the others only repeat the problem
    wrong_rate: float = 0.45  # share of documents whose final answer is wrong
    chain_error_rate: float = 0.2  # share of the wrong documents with a chain whose error is in the chain and carried to the answer
    malformed_rate: float = 0.1  # share of documents that break the response format

    def __post_init__(self) -> None:
        unknown = [operation for operation in self.operations if operation not in OPERATIONS]
        if unknown or not self.operations:
            raise ConfigError(f"task.operations must be a non-empty list of {' '.join(OPERATIONS)}, got {self.operations}")
        if self.max_operand < 1:
            raise ConfigError(f"task.max_operand must be at least 1, got {self.max_operand}")
        for name in ("test_fraction", "chain_rate", "wrong_rate", "chain_error_rate", "malformed_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"task.{name} must be between 0 and 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Problem:
    """`a operation b`, in the order that names it: the smaller operand first where order does not matter."""

    a: int
    operation: str
    b: int

    @property
    def id(self) -> str:
        return f"{self.a}{self.operation}{self.b}"

    @property
    def answer(self) -> int:
        return {"+": self.a + self.b, "-": self.a - self.b, "*": self.a * self.b}[self.operation]

    def turned(self, turn: bool) -> Problem:
        """The same problem with its operands exchanged, where that is the same problem."""
        return Problem(self.b, self.operation, self.a) if turn and self.operation != "-" else self


class Arithmetic:
    """Sums, differences and products of small integers, with documents to pre-train on."""

    version = "1"

    def __init__(self, config: ArithmeticConfig, *, seed: int = 0) -> None:
        """`seed` is accepted as for every task; neither the problems nor the split depend on it."""
        self.config = config
        self.seed = seed
        problems = sorted(_problems(config), key=lambda problem: (stable_fraction(problem.id, config.split_seed + 1), problem.id))
        sides: dict[str, list[Problem]] = {"train": [], "test": []}
        for problem in problems:
            table = problem.a < 10 and problem.b < 10  # chains quote these
            sides["train" if table else split_of(problem.id, config.test_fraction, config.split_seed)].append(problem)
        self._train = sides["train"]
        self._split = Split(tuple(map(_prompt, sides["train"])), tuple(map(_prompt, sides["test"])))

    def prompts(self, split: str) -> tuple[Prompt, ...]:
        """All problems of "train" or "test", in a fixed shuffled order, so that any first n of them are a fair sample."""
        return self._split.side(split)

    def documents(self, count: int, seed: int) -> Iterator[tuple[str | None, str]]:
        """`count` (question, response) pairs about training problems drawn uniformly; the same for the same seed."""
        generator = random.Random(f"arithmetic documents {seed}")
        for _ in range(count):
            problem = generator.choice(self._train).turned(generator.random() < 0.5)
            yield f"{problem.id}=", _response(problem, self.config, generator)


def _problems(config: ArithmeticConfig) -> Iterator[Problem]:
    for operation in dict.fromkeys(config.operations):
        for low in range(config.max_operand + 1):
            for high in range(low, config.max_operand + 1):
                yield Problem(high, "-", low) if operation == "-" else Problem(low, operation, high)


def _prompt(problem: Problem) -> Prompt:
    asked = problem.turned(stable_fraction(problem.id, 0) < 0.5)
    return Prompt(id=problem.id, question=f"{asked.id}=", answer=str(problem.answer), task="arithmetic")


def _response(problem: Problem, config: ArithmeticConfig, generator: random.Random) -> str:
    chained = generator.random() < config.chain_rate
    wrong = generator.random() < config.wrong_rate
    chain_error = wrong and chained and generator.random() < config.chain_error_rate
    thought, answer = _think(problem, generator if chain_error else None) if chained else (problem.id, problem.answer)
    if wrong and not chain_error:
        answer = _near_miss(answer, generator)
    malformed = generator.random() < config.malformed_rate
    return documents.malformed(thought, str(answer), generator) if malformed else f"<think>{thought}</think><answer>{answer}</answer>"


def _columns(problem: Problem) -> list[Column]:
    """The sums of digits a chain works through, ones first."""
    left, right = ([int(digit) for digit in reversed(str(operand))] for operand in (problem.a, problem.b))
    columns: list[Column] = []
    if problem.operation == "*":
        for place in range(len(left) + len(right) - 1):
            pairs = [(left[i], right[place - i]) for i in range(len(left)) if 0 <= place - i < len(right)]
            columns.append(("+".join(f"{x}*{y}" for x, y in pairs), sum(x * y for x, y in pairs)))
        return columns
    for x, y in zip_longest(left, right, fillvalue=0):
        columns.append((f"{x}{problem.operation}{y}", x + y if problem.operation == "+" else x - y))
    return columns


def _think(problem: Problem, error: random.Random | None) -> tuple[str, int]:
    """The digit-wise chain and the answer it leads to. With `error` one column's result is off by one and everything after follows from it.

    An error of 1 in one column moves the answer by exactly that column's place, so the answer is never right by accident.
    """
    columns = _columns(problem)
    off_at = error.randrange(len(columns)) if error else None
    subtracting = problem.operation == "-"
    steps, answer, carry = [], 0, 0
    for place, (statement, value) in enumerate(columns):
        last = place == len(columns) - 1
        value += -carry if subtracting else carry
        statement += f"{problem.operation if subtracting else '+'}{carry}" if carry else ""
        borrow = subtracting and value < 0 and not last
        if borrow:
            statement, value = f"10+{statement}", value + 10
        if error and place == off_at:
            value += _slip(value, error, highest=9 if subtracting else None)
        carry = int(borrow) if subtracting else value // 10
        answer += (value if last else value % 10) * 10**place
        steps.append(f"{statement}={value}" + ("" if last else f" {'b' if subtracting else 'c'}{carry}"))
    return " ".join(steps), answer


def _slip(value: int, generator: random.Random, highest: int | None) -> int:
    """+1 or -1, such that the value stays one that the column could have."""
    if value <= 0:
        return 1
    return -1 if value == highest or generator.random() < 0.5 else 1


def _near_miss(answer: int, generator: random.Random) -> int:
    """Another non-negative number close to the answer, or with one digit wrong; whatever the answer is, many are possible."""
    digits = str(answer)
    while True:
        if generator.random() < 0.5:
            candidate = answer + generator.choice((-10, -3, -2, -1, 1, 2, 3, 10))
        else:
            place = generator.randrange(len(digits))
            candidate = int(digits[:place] + generator.choice("0123456789") + digits[place + 1:])
        if candidate >= 0 and candidate != answer:
            return candidate


@hookimpl
def register_tasks(register: Register) -> None:
    register("arithmetic", Arithmetic, config=ArithmeticConfig)
