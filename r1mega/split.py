"""Train/test splits that cannot leak: a problem's side depends on its identity alone, never on row order, pool or run seed.

Because of that, two stages that see different parts of a task (a smaller pool, another order) still agree on every problem's side.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from r1mega.errors import ConfigError, UserError, nearest
from r1mega.types import Prompt

SplitName = Literal["train", "test"]
BARE_QUESTION = "bare_question"  # key of Prompt.metadata: the question as the data states it, where a task puts words of its own around it


def text_id(question: str) -> str:
    """The identity of a text problem: 128 bits, as hex, of its question under NFKC, case folding and collapsed white space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", question).casefold())  # folding can undo the normal form
    return blake2b(" ".join(folded.split()).encode(), digest_size=16).hexdigest()


def bare_question(prompt: Prompt) -> str:
    """The question without the words its task put around it ("Put the answer in ..."): what tells whether two prompts are one problem."""
    bare = prompt.metadata.get(BARE_QUESTION)
    return bare if isinstance(bare, str) and bare.strip() else prompt.question


def stable_fraction(problem_id: str, seed: int) -> float:
    """A number in [0, 1) fixed by (problem id, seed) on every machine and Python version; uniform over ids."""
    digest = blake2b(problem_id.encode(), digest_size=8, salt=(seed % 2**64).to_bytes(8, "little")).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def split_of(problem_id: str, test_fraction: float, seed: int) -> SplitName:
    """Which side a problem is on. Raising `test_fraction` only moves problems from train to test. Raises `ConfigError` outside [0, 1]."""
    if not 0 <= test_fraction <= 1:
        raise ConfigError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    return "test" if stable_fraction(problem_id, seed) < test_fraction else "train"


@dataclass(frozen=True)
class Split:
    """Both sides of a task, one prompt per problem. Construction fails if any problem is on both sides or twice on one."""

    train: tuple[Prompt, ...]
    test: tuple[Prompt, ...]
    duplicates: int = 0  # rows dropped because their problem was already there
    leaked: int = 0  # training rows dropped because their problem is in the given test set

    def __post_init__(self) -> None:
        ids = [prompt.id for prompt in (*self.train, *self.test)]
        if len(ids) != len(set(ids)):
            both = sorted({prompt.id for prompt in self.train} & {prompt.id for prompt in self.test})
            raise ValueError(f"problems in both train and test: {both[:5]}" if both else "a problem occurs twice in one split")

    def side(self, name: str) -> tuple[Prompt, ...]:
        """The prompts of "train" or "test". Raises `UserError` for another name or an empty side."""
        if name not in ("train", "test"):
            raise UserError(f"no split is called '{name}'.{nearest(name, ('train', 'test'))} Known: train, test")
        prompts = self.train if name == "train" else self.test
        if not prompts:
            raise UserError(f"the {name} split has no problems ({len(self.train)} train, {len(self.test)} test); "
                            "change the task's test_fraction or give it more data")
        return prompts


def _distinct(prompts: Iterable[Prompt]) -> tuple[dict[str, Prompt], int]:
    """The first prompt of each problem, in order, and how many later ones were dropped."""
    first: dict[str, Prompt] = {}
    seen = 0
    for prompt in prompts:
        seen += 1
        first.setdefault(prompt.id, prompt)
    return first, seen - len(first)


def split_prompts(prompts: Iterable[Prompt], test_fraction: float, seed: int) -> Split:
    """Split one pool of prompts by problem identity, keeping their order."""
    distinct, duplicates = _distinct(prompts)
    sides: dict[SplitName, list[Prompt]] = {"train": [], "test": []}
    for prompt in distinct.values():
        sides[split_of(prompt.id, test_fraction, seed)].append(prompt)
    return Split(tuple(sides["train"]), tuple(sides["test"]), duplicates)


def given_split(train: Iterable[Prompt], test: Iterable[Prompt]) -> Split:
    """Use the sides a data set comes with; a training problem that is also in test is removed from train, and counted."""
    kept, train_duplicates = _distinct(train)
    held_out, test_duplicates = _distinct(test)
    clean = tuple(prompt for prompt in kept.values() if prompt.id not in held_out)
    return Split(clean, tuple(held_out.values()), train_duplicates + test_duplicates, len(kept) - len(clean))
