"""A replica's kept samples through the rewriter: what it returns is checked again like any sample. The leads' part of stage `sample`."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r1mega.config import PluginChoice
from r1mega.data.card import Tallies, Tally
from r1mega.data.chat import render_response
from r1mega.data.decontaminate import Decontaminator
from r1mega.data.filters import Draft, why_unfit
from r1mega.data.records import SampleRecord
from r1mega.errors import PluginError
from r1mega.hookspecs import Rewriter
from r1mega.recipe import files
from r1mega.recipe.context import StageContext
from r1mega.rewards.pool import RewardPool, Verdict
from r1mega.rollout.collect import reward_sample
from r1mega.types import EncodedPrompt, Prompt

from ._banked import banked
from ._sampler import Row, decider
from ._setup import make

if TYPE_CHECKING:
    from .sample import SampleConfig

_CHUNK = 256  # samples that are rewritten, and banked, at once; and how many may wait for their verdict
_POLL_S = 0.01


@dataclass
class Rewriting:
    """One replica's rewriting, row by row and in their order; every loss is counted in `tallies`."""

    config: SampleConfig
    context: StageContext
    replica: int
    prompts: Mapping[int, Prompt]  # by their place: a row holds no more of its prompt's metadata than labels, the rewards need it whole
    evaluations: Decontaminator  # what new text is compared with
    tallies: Tallies
    contaminated: Counter[str]  # evaluation problem -> drops

    def rows(self, rows: Iterable[Row]) -> Iterable[Row]:
        """The rows as the rewriter leaves them; the rows themselves where there is none.

        New text passes the filters, the decontamination and the verdict again, or is dropped. Raises `PluginError` for a rewriter that returns
        other samples than it was given.
        """
        choice = self.config.rewriter
        if not isinstance(choice, PluginChoice) or choice.name == "none":
            return rows
        return self._still_correct(self._fit(make("rewriters", choice), choice.name, rows))

    def _drop(self, record: SampleRecord, reason: str) -> None:
        self.tallies.setdefault(record.domain, Tally()).drops[reason] += 1

    def _fit(self, rewriter: Rewriter, name: str, rows: Iterable[Row]) -> Iterator[Row]:
        label, rest = f"{name} {rewriter.version}", iter(rows)
        for number in itertools.count():
            chunk = list(itertools.islice(rest, _CHUNK))
            if not chunk:
                return
            for (place, before), after in zip(chunk, self._rewritten(rewriter, name, number, [record for _, record in chunk]), strict=True):
                if after is None:
                    self._drop(before, "not_rewritten")
                elif reason := why_unfit(Draft(after.reasoning, after.response, after.language), self.config.filters):
                    self._drop(before, f"rewritten_{reason}")
                elif found := self.evaluations.find(after.reasoning, after.response):
                    self.contaminated[found] += 1
                    self._drop(before, "rewritten_contaminated")
                else:
                    yield place, dataclasses.replace(after, provenance={**before.provenance, "rewriter": label})

    def _rewritten(self, rewriter: Rewriter, name: str, number: int, chunk: Sequence[SampleRecord]) -> list[SampleRecord | None]:
        """A chunk's new rows."""
        def rewritten() -> list[Any]:
            made = list(rewriter.rewrite(chunk))
            if len(made) != len(chunk) or any(after is not None and (after.id, after.prompt, after.answer) != (before.id, before.prompt, before.answer)
                                              for before, after in zip(chunk, made, strict=False)):
                raise PluginError(f"rewriter '{name}' returned {len(made)} rows for {len(chunk)}, or changed an id, a prompt or a reference answer; it "
                                  "must return each sample, with other text, or None in its place")
            return [None if row is None else files.plain(dataclasses.asdict(row)) for row in made]

        path = self.context.scratch / "rewritten" / f"replica_{self.replica:05d}" / f"chunk_{number:06d}.json"
        rows = banked(path, [files.plain(dataclasses.asdict(row)) for row in chunk], rewritten, self.context.check_epoch)
        return [None if row is None else SampleRecord(**row) for row in rows]

    # ---------------------------------------------------------------------------------------------------------------------- the verdict

    def _still_correct(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows whose new text is as correct as the old one was, by the reward that decided it then. Scored while the next are rewritten."""
        deciders = {name: term for name, term in self.config.reward.terms.items() if name in (self.config.metric, self.config.judge)}
        waiting: deque[tuple[Row, str]] = deque()
        verdicts: dict[str, Verdict] = {}
        with RewardPool.from_config(dataclasses.replace(self.config.reward, terms=deciders)) as pool:
            for row in rows:
                waiting.append((row, self._submit(pool, row)))
                while len(waiting) >= _CHUNK:
                    verdicts.update((verdict.key, verdict) for verdict in pool.poll())
                    if waiting[0][0][1].id not in verdicts:
                        time.sleep(_POLL_S)
                    yield from self._settled(waiting, verdicts)
            verdicts.update((verdict.key, verdict) for verdict in pool.finish())
            yield from self._settled(waiting, verdicts)

    def _submit(self, pool: RewardPool, row: Row) -> str:
        """Have a row scored; the reward term that decides it."""
        (cursor, _, _), record = row
        template, metadata = self.config.template, self.prompts[cursor].metadata
        prompt = Prompt(record.id, record.prompt, record.answer, record.domain, record.language, record.task, metadata)
        encoded = EncodedPrompt(prompt, template.prompt.replace("{question}", record.prompt), ())
        term = decider(self.config, prompt)
        pool.submit(record.id, reward_sample(encoded, render_response(template.response, record.reasoning, record.response)), (term,))
        return term

    def _settled(self, waiting: deque[tuple[Row, str]], verdicts: dict[str, Verdict]) -> Iterator[Row]:
        """Take the rows whose verdict is known off the front, up to the first whose is not; the correct ones."""
        while waiting and waiting[0][0][1].id in verdicts:
            row, term = waiting.popleft()
            if verdicts.pop(row[1].id).parts[term] >= self.config.threshold:  # false for a failed reward, which is NaN
                yield row
            else:
                self._drop(row[1], "rewritten_incorrect")
