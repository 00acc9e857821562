"""Units of preference data: responses to some prompts, judged. One rank's share of stage `preference_data`; the counterpart of `_sampler.py`."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from r1mega.data.card import Tallies, Tally
from r1mega.data.chat import split_response
from r1mega.data.decontaminate import Decontaminator
from r1mega.data.judged import SCOPES, judged_text
from r1mega.data.preferences import ResponsePair, WholeResponse, agreed, assessments, comparisons, settle
from r1mega.errors import PluginError
from r1mega.hookspecs import Annotator, Generator
from r1mega.recipe.context import StageContext
from r1mega.rewards.build import opens_reasoning
from r1mega.rollout.collect import WorkItem, make_requests
from r1mega.rollout.ledger import Ledger
from r1mega.split import stable_fraction
from r1mega.types import Completion, EncodedPrompt, Prompt, RolloutGroup, SamplingParams, ScoredGroup

from ._apart import apart
from ._banked import banked
from ._preferences import Place, PlacedRow, Row, write_rows

if TYPE_CHECKING:
    from r1mega.policy.ranks import Ranks

    from .preference_data import PreferenceDataConfig

Verdict = str | bool | None
Candidate = TypeVar("Candidate", ResponsePair, WholeResponse)


@dataclass
class Annotating:
    """One rank's share. All ranks of a replica hold the same responses; its lead has them judged. `unit` is a collective."""

    config: PreferenceDataConfig
    context: StageContext
    ranks: Ranks
    generator: Generator
    annotator: Annotator | None  # on the replica's lead
    prompts: InitVar[Sequence[EncodedPrompt]]  # of all replicas
    sampling: SamplingParams
    provenance: Mapping[str, Any]  # of every row: who answered, who judged
    evaluations: Decontaminator = field(default_factory=lambda: Decontaminator(()))  # what responses are compared with

    tallies: Tallies = field(default_factory=dict)  # of the replica, on its lead

    def __post_init__(self, prompts: Sequence[EncodedPrompt]) -> None:
        ranks, size = self.ranks, self.config.prompts_per_unit
        mine = [WorkItem(place, prompt) for place, prompt in enumerate(prompts) if place % ranks.dp_size == ranks.dp_rank]
        self.units = math.ceil(math.ceil(len(prompts) / ranks.dp_size) / size)
        self._members = [mine[unit * size: (unit + 1) * size] for unit in range(self.units)]
        self._kept = 0
        self._shown = functools.partial(judged_text, scope=SCOPES[self.config.kind])
        self._ledger = Ledger(self.context.scratch / "ledger", ranks.dp_rank, before_rename=self.context.check_epoch)

    def unit(self, number: int) -> dict[str, float]:
        """Answer and judge one unit's prompts; what has been kept over all replicas by then."""
        groups, from_ledger = self._answered(number)

        def judge() -> None:
            rows = list(self._pairs(number, groups) if self.config.kind == "helpful" else self._responses(number, groups))
            write_rows(self.context, number, self.ranks.dp_rank, rows)
            self._kept += len(rows)

        apart(self.ranks, judge if self.ranks.is_lead else None)
        return self.ranks.sum_over_replicas({"prompts": len(groups), "kept": self._kept, "units_from_ledger": float(from_ledger)})

    def _tally(self, prompt: Prompt) -> Tally:
        return self.tallies.setdefault(prompt.domain, Tally())

    # ---------------------------------------------------------------------------------------------------------------------- responses

    def _answered(self, number: int) -> tuple[Sequence[ScoredGroup], bool]:
        """The responses of a unit, and whether they are the ledger's. A collective."""
        items, count = self._members[number], self.config.responses_per_prompt
        done = self._ledger.load_together(0, number, items, count, self.ranks)
        if done is not None:
            return done, True
        made: dict[str, Completion] = {}

        def on_finish(completion: Completion) -> None:
            made[completion.id] = completion

        self.generator.generate(make_requests(items, count, self.sampling, self.config.seed, 0), on_finish)
        groups = [ScoredGroup(RolloutGroup(item.prompt, tuple(made[item.sample_id(k)] for k in range(count))), (0.0,) * count, {}, (True,) * count)
                  for item in items]  # without rewards: no term applies
        if self.ranks.is_lead:
            self._ledger.commit(0, number, groups)
        return groups, False

    def _usable(self, group: ScoredGroup) -> Iterator[tuple[int, Completion]]:
        """The whole responses of a prompt, with their places; the others are counted."""
        encoded = group.group.prompt
        tally = self._tally(encoded.prompt)
        tally.prompts += 1
        for k, completion in enumerate(group.group.completions):
            tally.generated += 1
            if completion.finish_reason == "length":
                tally.drops["response_truncated"] += 1
            elif not split_response(completion.text, starts_in_reasoning=opens_reasoning(encoded))[1]:
                tally.drops["response_without_visible_part"] += 1
            elif self.evaluations.find(completion.text):
                tally.drops["response_contaminated"] += 1
            else:
                yield k, completion

    # ------------------------------------------------------------------------------------------------------------------------- judged

    def _pairs(self, number: int, groups: Sequence[ScoredGroup]) -> Iterator[PlacedRow]:
        """The unit's pairs with a clear winner."""
        config, annotator = self.config, self._asked
        candidates = self._placed(number, groups, self._pairs_of)
        asked = comparisons([pair for _, pair in candidates], config.judgements, shown=self._shown)
        verdicts = self._judged(number, [(one.id, one.prompt.question, one.a, one.b) for one in asked], lambda: annotator.compare(asked))
        return self._settled(candidates, verdicts, functools.partial(settle, judgements=config.judgements, min_margin=config.min_margin))

    def _responses(self, number: int, groups: Sequence[ScoredGroup]) -> Iterator[PlacedRow]:
        """The unit's responses that are clearly safe or unsafe."""
        config, annotator = self.config, self._asked
        candidates = self._placed(number, groups, self._responses_of)
        asked = assessments([response for _, response in candidates], config.judgements, shown=self._shown)
        verdicts = self._judged(number, [(one.id, one.prompt.question, one.response) for one in asked], lambda: annotator.assess(asked))
        return self._settled(candidates, verdicts, functools.partial(agreed, judgements=config.judgements))

    @property
    def _asked(self) -> Annotator:
        assert self.annotator is not None
        return self.annotator

    def _placed(self, number: int, groups: Sequence[ScoredGroup], of: Callable[[ScoredGroup], Sequence[Candidate]]) -> list[tuple[Place, Candidate]]:
        """What is to be judged of a unit, in order."""
        return [((item.cursor, place), candidate) for item, group in zip(self._members[number], groups, strict=True)
                for place, candidate in enumerate(of(group))]

    def _pairs_of(self, group: ScoredGroup) -> list[ResponsePair]:
        """At most `pairs_per_prompt` pairs of a prompt's responses whose judged parts differ, from each other and from those of the other pairs."""
        prompt, tally = group.group.prompt.prompt, self._tally(group.group.prompt.prompt)
        usable = list(self._usable(group))
        pairs, seen = [], set[frozenset[str]]()
        for (i, first), (j, second) in itertools.combinations(usable, 2):
            shown = frozenset((self._shown(first.text), self._shown(second.text)))
            if len(shown) == 1:
                tally.drops["pair_of_equal_responses"] += 1
            elif shown in seen:
                tally.drops["pair_repeated"] += 1
            else:
                seen.add(shown)
                pairs.append(ResponsePair(f"{prompt.id}#{i}-{j}", prompt, first.text, second.text, self._origin(prompt, {"samples": [i, j]})))
        pairs.sort(key=lambda pair: (stable_fraction(f"pair: {pair.id}", self.config.seed), pair.id))
        surplus = pairs[self.config.pairs_per_prompt:]
        tally.drops["pair_surplus"] += len(surplus)
        tally.drops["prompt_without_pair"] += not pairs
        return pairs[: self.config.pairs_per_prompt]

    def _responses_of(self, group: ScoredGroup) -> list[WholeResponse]:
        """A prompt's responses, each text once."""
        prompt, seen, found = group.group.prompt.prompt, set[str](), []
        for k, completion in self._usable(group):
            if completion.text in seen:
                self._tally(prompt).drops["response_repeated"] += 1
            else:
                found.append(WholeResponse(f"{prompt.id}#{k}", prompt, completion.text, self._origin(prompt, {"sample": k})))
            seen.add(completion.text)
        return found

    def _origin(self, prompt: Prompt, which: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.provenance, "prompt_id": prompt.id, **which}

    def _judged(self, number: int, asked: Sequence[tuple[str, ...]], judge: Callable[[], Sequence[Verdict]]) -> list[Verdict]:
        """A unit's verdicts. `asked` is what each question consists of. Raises `PluginError` for an annotator that does not answer all of them."""
        def verdicts() -> Sequence[Verdict]:
            given = judge()
            if len(given) != len(asked):
                raise PluginError(f"annotator '{self.provenance['annotator']}' gave {len(given)} verdicts for {len(asked)} questions; it must give one "
                                  "for each, None where it has none")
            return given

        path = self.context.scratch / "judgements" / f"replica_{self.ranks.dp_rank:05d}" / f"unit_{number:06d}.json"
        return banked(path, asked, verdicts, self.context.check_epoch)

    def _settled(self, candidates: Sequence[tuple[Place, Candidate]], verdicts: Sequence[Verdict],
                 decide: Callable[[Sequence[Candidate], Sequence[Verdict]], tuple[Sequence[Row], Counter[str]]]) -> Iterator[PlacedRow]:
        """The rows that their verdicts make; one by one, so that each loss is counted for the prompt's domain."""
        count = self.config.judgements
        for number, (place, candidate) in enumerate(candidates):
            kept, drops = decide([candidate], verdicts[number * count: (number + 1) * count])
            self._tally(candidate.prompt).drops.update(drops)
            yield from ((place, row) for row in kept)
