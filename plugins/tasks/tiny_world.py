"""The tiny world of the whole recipe: problems of eight families thought through in two languages, requests without a problem, preferences.

Everything is generated; what is held out follows from a problem's identity alone (`r1mega.split`), so that no document states a held-out problem
in any of its wordings or languages. The parts live in `r1mega.data.world`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from r1mega import hookimpl
from r1mega.data.records import JudgedResponse, PreferencePair, SampleRecord
from r1mega.data.world.documents import Rates, finish, reply, respond, write_unreliably
from r1mega.data.world.families import DOMAINS, FAMILIES
from r1mega.data.world.general import Query, queries
from r1mega.data.world.languages import LANGUAGES, write
from r1mega.data.world.preferences import RESPONSE, preference_pairs, safety_verdicts
from r1mega.data.world.problem import Problem
from r1mega.errors import ConfigError, UserError, nearest
from r1mega.hookspecs import Register
from r1mega.split import Split, split_of, stable_fraction
from r1mega.types import Prompt


@dataclass(frozen=True)
class TinyWorldConfig(Rates):
    """Which problems there are, which are held out, and (`Rates`) how unreliable the documents about the others are."""

    families: list[str] = field(default_factory=lambda: list(FAMILIES))
    domains: list[str] = field(default_factory=list)  # only families of these: math, logic, code; empty: all
    languages: list[str] = field(default_factory=lambda: list(LANGUAGES))  # of questions
    max_operand: int = 40  # of sums and differences, up to 99
    test_fraction: float = 0.3  # of the problems that no chain quotes, and of the requests made of two halves
    split_seed: int = 0  # not the run's seed: every stage of every run must agree on what is held out
    train_per_family: int = 400  # prompts of a family, at most; documents are about all of its training problems
    test_per_family: int = 80

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("families", tuple(FAMILIES)), ("domains", DOMAINS), ("languages", LANGUAGES)):
            for value in getattr(self, name):
                if value not in known:
                    raise ConfigError(f"task.{name}: '{value}' is unknown.{nearest(value, known)} Known: {', '.join(known)}")
        if not self.languages or not self.chosen:
            raise ConfigError(f"task: no family is left of families={self.families} in domains={self.domains}, languages={self.languages}")
        if not 1 <= self.max_operand <= 99:
            raise ConfigError(f"task.max_operand must be between 1 and 99, got {self.max_operand}")
        if not 0 <= self.test_fraction <= 1 or min(self.train_per_family, self.test_per_family) < 1:
            raise ConfigError(f"task.test_fraction must be between 0 and 1 and task.train_per_family and task.test_per_family at least 1, got "
                              f"{self.test_fraction}, {self.train_per_family} and {self.test_per_family}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The families in use."""
        return tuple(name for name in dict.fromkeys(self.families) if not self.domains or FAMILIES[name].domain in self.domains)


class TinyWorld:
    """Problems to reason about in two languages, documents and general samples to learn from, and preferences: all from a seed."""

    version = "1"

    def __init__(self, config: TinyWorldConfig, *, seed: int = 0) -> None:
        """`seed` is accepted as for every task; neither the problems nor the split depend on it."""
        self.config = config
        self.seed = seed
        self._problems: dict[str, dict[str, list[Problem]]] = {name: self._sides(name) for name in config.chosen}
        self._split = Split(self._interleaved("train", config.train_per_family), self._interleaved("test", config.test_per_family))
        self._queries = {side: tuple(query for query in queries() if query.language in config.languages and self._side_of(query) == side)
                         for side in ("train", "test")}

    def prompts(self, split: str) -> tuple[Prompt, ...]:
        """Problems of "train" or "test", family by family in turn in a fixed shuffled order, so that any first n are a fair sample of all families.

        `metadata["family"]` tells the family, as does the id up to its colon.
        """
        return self._split.side(split)

    def documents(self, count: int, seed: int) -> Iterator[tuple[str | None, str]]:
        """`count` (question, response) pairs about training problems and requests, in either language; the same for the same seed."""
        generator = random.Random(f"tiny world documents {seed}")
        by_kind = _by_domain_and_kind(self._queries["train"])
        for _ in range(count):
            if generator.random() < self.config.general_share:
                query = _draw(by_kind, generator)
                pieces, answer = reply(query, self.config, generator)
                reasoning = write_unreliably(pieces, query.language, self.config, generator)
                yield query.question, finish(reasoning, answer, self.config, generator)
            else:
                problem = generator.choice(self._problems[generator.choice(self.config.chosen)]["train"]).posed(generator)
                language = generator.choice(self.config.languages)
                yield problem.question(language), respond(problem, language, self.config, generator)

    def general_prompts(self, split: str) -> list[Prompt]:
        """All requests of "train" or "test" in a fixed shuffled order, domains in turn. Only those with one right answer have an `answer`."""
        return [_request(query) for query in self._requests(split)]

    def refusal_prompts(self, split: str) -> list[Prompt]:
        """The requests about safety alone, each with `refusal_expected`: what the reward `refusal` needs."""
        return [replace(_request(query), metadata={"kind": query.kind, "refusal_expected": query.kind == "unsafe"})
                for query in self._requests(split) if query.is_safety]

    def general_samples(self, count: int, seed: int, split: str = "train") -> list[SampleRecord]:
        """`count` answered requests of the three domains alike, in one language each, as polite and careful as the config's rates say."""
        generator = random.Random(f"tiny world general samples {seed}")
        by_kind = _by_domain_and_kind(self._requests(split))
        samples = []
        for index in range(count):
            query = _draw(by_kind, generator)
            pieces, answer = reply(query, self.config, generator)
            prompt = _request(query)
            samples.append(SampleRecord(f"{query.id}#{index}", query.question, write(pieces, query.language), answer, prompt.answer, query.domain,
                                        query.language, prompt.task, prompt.metadata, {"prompt_id": query.id, "generator": "tiny_world", "seed": seed}))
        return samples

    def preferences(self, count: int, seed: int, split: str = "train", template: str = RESPONSE) -> tuple[list[PreferencePair], list[JudgedResponse]]:
        """`count` pairs about helpful and safety requests and `count` safety verdicts; whole responses in `template` (`TemplateConfig.response`)."""
        generator = random.Random(f"tiny world preferences {seed}")
        requests = self._requests(split)
        helpful, safety = ([query for query in requests if query.domain == domain] for domain in ("helpful", "safety"))
        if not helpful or not safety:
            raise UserError(f"the {split} side has {len(helpful)} helpful and {len(safety)} safety requests; preferences need both: change task.test_fraction="
                            f"{self.config.test_fraction}")
        return preference_pairs([*helpful, *safety], count, generator, template), safety_verdicts(safety, count, generator, template)

    def _sides(self, family: str) -> dict[str, list[Problem]]:
        """A family's problems by side, each side in a fixed shuffled order."""
        sides: dict[str, list[Problem]] = {"train": [], "test": []}
        for problem in FAMILIES[family].every(self.config.max_operand):
            sides["train" if problem.quoted else split_of(problem.id, self.config.test_fraction, self.config.split_seed)].append(problem)
        for problems in sides.values():
            problems.sort(key=lambda problem: (stable_fraction(problem.id, self.config.split_seed + 1), problem.id))
        if not sides["train"]:
            raise UserError(f"the tiny world's family '{family}' has no training problem; lower task.test_fraction={self.config.test_fraction}")
        return sides

    def _interleaved(self, side: str, limit: int) -> tuple[Prompt, ...]:
        taken = [(rank, name, problem) for name, sides in self._problems.items() for rank, problem in enumerate(sides[side][:limit])]
        return tuple(self._prompt(problem) for _, _, problem in sorted(taken, key=lambda item: item[:2]))

    def _prompt(self, problem: Problem) -> Prompt:
        """The problem's one prompt: its wording and language depend on its identity alone."""
        generator = random.Random(f"tiny world prompt {problem.id}")
        language = generator.choice(self.config.languages)
        return Prompt(problem.id, problem.posed(generator).question(language), problem.answer, problem.domain, language, "tiny_world",
                      {"family": problem.family})

    def _side_of(self, query: Query) -> str:
        return split_of(query.identity, self.config.test_fraction, self.config.split_seed) if query.can_be_held_out else "train"

    def _requests(self, split: str) -> list[Query]:
        if split not in self._queries:
            raise UserError(f"no split is called '{split}'.{nearest(split, self._queries)} Known: {', '.join(self._queries)}")
        if not self._queries[split]:
            raise UserError(f"the {split} side has no general request; change task.test_fraction={self.config.test_fraction}")
        return _shuffled(self._queries[split], self.config.split_seed + 1)


def _by_domain_and_kind(requests: Sequence[Query]) -> list[list[list[Query]]]:
    domains: dict[str, dict[str, list[Query]]] = {}
    for query in requests:
        domains.setdefault(query.domain, {}).setdefault(query.kind, []).append(query)
    return [list(kinds.values()) for kinds in domains.values()]


def _draw(by_kind: list[list[list[Query]]], generator: random.Random) -> Query:
    """A request: domains alike, in a domain kinds alike, in a kind requests alike."""
    return generator.choice(generator.choice(generator.choice(by_kind)))


def _shuffled(requests: Sequence[Query], seed: int) -> list[Query]:
    """Domains in turn, until each runs out; shuffled within a domain."""
    ranks: dict[str, int] = {}
    ordered = []
    for query in sorted(requests, key=lambda query: (stable_fraction(query.id, seed), query.id)):
        ranks[query.domain] = ranks.get(query.domain, 0) + 1
        ordered.append((ranks[query.domain], query.domain, query))
    return [query for _, _, query in sorted(ordered, key=lambda item: item[:2])]


def _request(query: Query) -> Prompt:
    verifiable = query.kind in ("self", "fact")
    return Prompt(query.id, query.question, query.answer if verifiable else None, query.domain, query.language, "tiny_world", {"kind": query.kind})


@hookimpl
def register_tasks(register: Register) -> None:
    register("tiny_world", TinyWorld, config=TinyWorldConfig)
