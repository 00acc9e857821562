"""Rounds of rejection sampling: what `sample.py` keeps of what a checkpoint says. The counterpart of `_learner.py`."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import InitVar, asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from r1mega import plugins
from r1mega.data.card import Tallies, Tally
from r1mega.data.chat import render_response, split_response
from r1mega.data.decontaminate import Decontaminator
from r1mega.data.dedup import PromptDeduplicator
from r1mega.data.filters import FILTERS, Draft, why_unfit
from r1mega.data.records import SampleRecord
from r1mega.errors import ConfigError, R1MegaError
from r1mega.hookspecs import Generator
from r1mega.policy import flops
from r1mega.recipe.context import StageContext
from r1mega.rewards.pool import RewardPool
from r1mega.rewards.schedule import applicable
from r1mega.rollout.collect import WorkItem, generate_and_score
from r1mega.rollout.ledger import Ledger
from r1mega.types import Completion, EncodedPrompt, Prompt, SamplingParams, ScoredGroup

if TYPE_CHECKING:
    from r1mega.policy.ranks import Ranks

    from .sample import SampleConfig

LONGEST_LABEL = 200  # characters of JSON

Place = tuple[int, int, int]  # (prompt, round, sample): the order of a set's rows
Row = tuple[Place, SampleRecord]


@dataclass
class Work:
    """One prompt and which of its samples were kept so far. Their text is in the ledger: a set is larger than memory."""

    item: WorkItem
    seen: PromptDeduplicator
    kept: list[tuple[Any, Place]] = field(default_factory=list)  # (what they are preferred by, the least first; where)

    @property
    def prompt(self) -> Prompt:
        return self.item.prompt.prompt


@dataclass
class Sampler:
    """One rank's share of the sampling. All ranks of a replica come to the same result; `run` is a collective."""

    config: SampleConfig
    context: StageContext
    ranks: Ranks
    generator: Generator
    pool: RewardPool | None  # on the replica's lead
    prompts: InitVar[Sequence[EncodedPrompt]]  # of all replicas
    sampling: SamplingParams
    evaluations: Decontaminator
    maker: Mapping[str, str]  # {"checkpoint": digest of the policy's weights}, or {"model": what the server calls the one it runs}

    meter: flops.Meter | None = None  # None where a server's model answers, whose shape is not known
    tallies: Tallies = field(default_factory=dict)
    contaminated: Counter[str] = field(default_factory=Counter)  # evaluation problem -> drops

    def __post_init__(self, prompts: Sequence[EncodedPrompt]) -> None:
        ranks, config = self.ranks, self.config
        self.works = [Work(WorkItem(place, prompt), PromptDeduplicator(config.dedup)) for place, prompt in enumerate(prompts)
                      if place % ranks.dp_size == ranks.dp_rank]
        for work in self.works:
            self.tally(work.prompt).prompts += 1
        self._asked: list[list[Work]] = []  # by round, the prompts that were sampled in it
        self.ledger = Ledger(self.context.scratch / "ledger", ranks.dp_rank, before_rename=self.context.check_epoch)
        terms = config.reward.terms.items()
        self._versions = {name: plugins.load().registry.get("rewards", term.name).version for name, term in terms}

    def tally(self, prompt: Prompt) -> Tally:
        return self.tallies.setdefault(prompt.domain, Tally())

    # -------------------------------------------------------------------------------------------------------------------------- rounds

    def round(self, number: int) -> dict[str, float] | None:
        """One more round for every prompt that lacks samples; what has been kept over all replicas by then, or None when no prompt lacks any."""
        lacking = [work for work in self.works if len(work.kept) < self.config.wanted_per_prompt]
        units = math.ceil(self.ranks.max_over_ranks(float(len(lacking))) / self.config.prompts_per_unit)
        if not units:
            return None
        self._asked.append(lacking)
        banked, made = 0, flops.Work()
        for unit in range(units):
            members = self._members(number, unit)
            groups, found = self._unit(number, unit, members)
            banked += found
            made += flops.generation(groups)
            for work, group in zip(members, groups, strict=True):
                self._take(work, number, group)
        left = sum(len(work.kept) < self.config.wanted_per_prompt for work in self.works)
        totals = {"sampled_prompts": len(lacking), "kept": sum(len(work.kept) for work in self.works), "lacking_prompts": left}
        return self.ranks.sum_over_replicas(totals) | {"units": units, "units_from_ledger": banked} | self._flops(made)

    def _flops(self, made: flops.Work) -> dict[str, float]:
        """The compute of a round, of which this replica has `made` a part; whether it was made now or found in the ledger."""
        total = flops.Work(**self.ranks.sum_over_replicas(asdict(made)))
        if self.meter is None:
            return {}
        self.meter.add("generation", total)
        return self.meter.step()

    def _members(self, number: int, unit: int) -> list[Work]:
        """The prompts of a round's unit."""
        return self._asked[number][unit * self.config.prompts_per_unit: (unit + 1) * self.config.prompts_per_unit]

    def _unit(self, number: int, unit: int, members: Sequence[Work]) -> tuple[Sequence[ScoredGroup], bool]:
        """Some prompts' samples of a round, and whether they are the ledger's, where every replica has banked its own."""
        items = [work.item for work in members]
        banked = self.ledger.load_together(number, unit, items, self.config.samples_per_round, self.ranks)
        if banked is not None:
            return banked, True
        groups, _ = generate_and_score(items, self.config.samples_per_round, generator=self.generator, pool=self.pool, replica=self.ranks,
                                       sampling=self.sampling, seed=self.config.seed, step=number, terms_of=lambda prompt: terms_of(self.config, prompt))
        if self.ranks.is_lead:
            self.ledger.commit(number, unit, groups)
        return groups, False

    # ------------------------------------------------------------------------------------------------------------------- what is kept

    def _take(self, work: Work, number: int, group: ScoredGroup) -> None:
        tally = self.tally(work.prompt)
        tally.rounds += 1
        for k, completion in enumerate(group.group.completions):
            tally.generated += 1
            rewards = {name: values[k] for name, values in group.parts.items()}
            reasoning, response = _parts(work, completion)
            reason = self._verdict(work.prompt, rewards) or self._why_unfit(work, completion, reasoning, response)
            if reason:
                tally.drops[reason] += 1
            else:
                place = (work.item.cursor, number, k)
                work.kept.append((self._preference(work.prompt, place, completion), place))
        if len(work.kept) >= self.config.wanted_per_prompt:
            work.seen.forget()  # it is not sampled again

    def _verdict(self, prompt: Prompt, rewards: dict[str, float]) -> str:
        value = rewards[decider(self.config, prompt)]
        if math.isnan(value):
            return "reward_failed"
        if value < self.config.threshold:
            return "incorrect"
        self.tally(prompt).correct += 1
        return ""

    def _why_unfit(self, work: Work, completion: Completion, reasoning: str, response: str) -> str:
        if completion.finish_reason == "length":
            return "truncated"
        if split_response(render_response(self.config.template.response, reasoning, response)) != (reasoning, response):
            return "malformed"  # marks inside a part: it would be read as something else
        if reason := why_unfit(Draft(reasoning, response, work.prompt.language), self.config.filters):
            return reason
        if found := self.evaluations.find(reasoning, response):
            self.contaminated[found] += 1
            return "contaminated"
        return work.seen.add(f"{reasoning}\n\n{response}")

    def _preference(self, prompt: Prompt, place: Place, completion: Completion) -> int | str:
        if self.config.selection == "shortest":
            return len(completion.tokens)
        return hashlib.blake2b(f"{self.config.seed}/{_row_id(prompt, place)}".encode(), digest_size=8).hexdigest()

    # ---------------------------------------------------------------------------------------------------------------------------- rows

    def select(self) -> None:
        """Keep at most `wanted_per_prompt` samples of each prompt; the others are surplus."""
        for work in self.works:
            chosen = sorted(work.kept)[: self.config.wanted_per_prompt]
            self.tally(work.prompt).drops["surplus"] += len(work.kept) - len(chosen)
            work.kept = chosen

    def rows(self) -> Iterator[Row]:
        """This replica's kept samples in order, read back from the ledger: in memory are those of one unit of each round.

        Raises `R1MegaError` for a unit that cannot be read any more.
        """
        return heapq.merge(*map(self._rows_of, range(len(self._asked))), key=lambda row: row[0])

    def _rows_of(self, number: int) -> Iterator[Row]:
        unit = 0
        while members := self._members(number, unit):
            if any(place[1] == number for work in members for _, place in work.kept):
                yield from self._read_back(number, unit, members)
            unit += 1

    def _read_back(self, number: int, unit: int, members: Sequence[Work]) -> list[Row]:
        """A unit's kept samples, as a list: its tokens and log-probs, many times the size of the text, go at once."""
        groups = self.ledger.load(number, unit)
        if groups is None:
            raise R1MegaError(f"{self.ledger.folder}: the samples of unit {unit}, round {number} were there and are gone or damaged; run the same "
                              "command again: they are generated again, and no others")
        rows: list[Row] = []
        for work, group in zip(members, groups, strict=True):
            for place in sorted(place for _, place in work.kept if place[1] == number):
                rewards = {name: values[place[2]] for name, values in group.parts.items()}
                rows.append((place, self._record(work, place, group.group.completions[place[2]], rewards)))
        return rows

    def _record(self, work: Work, place: Place, completion: Completion, rewards: dict[str, float]) -> SampleRecord:
        (_, number, k), prompt = place, work.prompt
        reasoning, response = _parts(work, completion)
        provenance: dict[str, Any] = {
            **self.maker, "prompt_id": prompt.id, "round": number, "sample": k, "tokens": len(completion.tokens), "rewards": rewards,
            "reward_versions": {name: self._versions[name] for name in rewards}, "filters": [*FILTERS, "dedup", "decontamination"], "rewriter": None}
        return SampleRecord(id=_row_id(prompt, place), prompt=prompt.question, reasoning=reasoning, response=response, answer=prompt.answer,
                            domain=prompt.domain, language=prompt.language, task=prompt.task, metadata=shareable(prompt.metadata),
                            provenance=provenance)


def _parts(work: Work, completion: Completion) -> tuple[str, str]:
    """(reasoning, response) of a sample."""
    return split_response(completion.text, starts_in_reasoning=work.item.prompt.text.rstrip().endswith("<think>"))


def _row_id(prompt: Prompt, place: Place) -> str:
    cursor, number, k = place
    return f"{prompt.id}@{cursor}#{number}.{k}"


def decider(config: SampleConfig, prompt: Prompt) -> str:
    """The reward term that says whether an answer to this prompt is correct."""
    judged = prompt.domain in config.judge_domains or not (prompt.answer or "").strip()
    return config.judge if config.judge and judged else config.metric


def terms_of(config: SampleConfig, prompt: Prompt) -> Collection[str]:
    """The reward terms of a prompt: those of its domain, without the one that does not decide it."""
    idle = {config.metric, config.judge} - {decider(config, prompt)}
    return [name for name in applicable(config.reward.terms, prompt.domain) if name not in idle]


def shareable(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a sample keeps of its prompt's metadata: the conversation before the question, and short labels such as its family or subject.

    What a reward reads stays behind: tests of programs, reference calls, schemas (most of it nested or long) are hidden from who learns.
    """
    return {key: value for key, value in metadata.items() if key == "messages" or (not key.endswith("_test_cases") and _is_label(value))}


def _is_label(value: Any) -> bool:
    return isinstance(value, str | int | float) and len(json.dumps(value, ensure_ascii=False)) <= LONGEST_LABEL


def check_deciders(config: SampleConfig, prompts: Sequence[Prompt]) -> None:
    """Raise `ConfigError` where no reward decides a prompt: its term is confined to other domains."""
    kinds = {(prompt.domain, bool((prompt.answer or "").strip())): prompt for prompt in prompts}  # what `decider` looks at
    for (_, answered), prompt in kinds.items():
        term = decider(config, prompt)
        if term not in terms_of(config, prompt):
            raise ConfigError(f"prompts of domain '{prompt.domain}' with{'' if answered else 'out'} a reference answer are decided by "
                              f"reward.terms.{term}, which does not apply to that domain "
                              f"(domains={config.reward.terms[term].domains}); add the domain there, or name it in judge_domains with a `judge` for it")
