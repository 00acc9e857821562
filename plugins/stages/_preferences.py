"""From the replicas' judged rows to a `PreferenceSet`: merged, cut, balanced in length, written with its card. Rank 0's part of stage `preference_data`.

Rows pass one by one; of all rows together only their ids and lengths are in memory.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1mega.data.card import Tallies, Tally, drops_as_text, drops_table, inline, merge, table
from r1mega.data.judged import SCOPES, judged_text
from r1mega.data.preferences import LengthBalance, unbalanced
from r1mega.data.records import JudgedResponse, PreferencePair, write_preferences
from r1mega.errors import R1MegaError
from r1mega.recipe import files
from r1mega.recipe.context import StageContext

from ._placed import merge_placed, write_placed
from ._publish import publish

if TYPE_CHECKING:
    from .preference_data import PreferenceDataConfig

Place = tuple[int, int]  # (prompt, which of its rows): the order of a set's rows
Row = PreferencePair | JudgedResponse
PlacedRow = tuple[Place, Row]

_log = logging.getLogger(__name__)


def _shard(context: StageContext, unit: int, replica: int) -> Path:
    return context.scratch / "rows" / f"unit_{unit:06d}" / f"replica_{replica:05d}.jsonl"


def write_rows(context: StageContext, unit: int, replica: int, rows: Iterable[PlacedRow]) -> None:
    """A replica's rows of a unit, for rank 0 to merge. Called by the replica's lead."""
    write_placed(_shard(context, unit, replica), rows, context.check_epoch)


def merged(context: StageContext, units: int, replicas: int, kind: type[Row]) -> Iterator[Row]:
    """All rows in the order of their prompts: a unit's prompts come before the next one's."""
    for unit in range(units):
        yield from (kind(**row) for row in merge_placed(_shard(context, unit, replica) for replica in range(replicas)))


@dataclass
class Counts:
    """What the card tells of the rows, counted as they pass."""

    rows: Counter[str] = field(default_factory=Counter)  # by domain
    languages: Counter[str] = field(default_factory=Counter)
    safe: int = 0
    margin: float = 0.0  # sum over the pairs

    def counted(self, rows: Iterable[Row]) -> Iterator[Any]:
        """The rows, counted."""
        for row in rows:
            self.rows[row.domain] += 1
            self.languages[row.language] += 1
            if isinstance(row, PreferencePair):
                self.margin += row.margin
            else:
                self.safe += row.safe
            yield row


@dataclass(frozen=True)
class Chosen:
    """Which rows make the set."""

    ids: frozenset[str]
    balance: LengthBalance | None  # of pairs

    @classmethod
    def of(cls, config: PreferenceDataConfig, rows: Iterable[Row], tallies: Tallies) -> Chosen:
        """The first `max_rows` rows without those that tip the balance of lengths; every loss is counted in `tallies`.

        Lengths are characters of the part that the reward model reads.
        """
        length = functools.partial(_length, config)
        sizes: dict[str, tuple[float, float]] = {}
        domains: dict[str, str] = {}
        for row in rows:
            if config.max_rows and len(sizes) >= config.max_rows:
                tallies.setdefault(row.domain, Tally()).drops["surplus"] += 1
                continue
            sizes[row.id] = (length(row.chosen), length(row.rejected)) if isinstance(row, PreferencePair) else (0.0, 0.0)
            domains[row.id] = row.domain
        if config.kind != "helpful" or not config.length_tolerance:
            return cls(frozenset(sizes), None)
        gone, balance = unbalanced(sizes, tolerance=config.length_tolerance)
        if 2 * len(gone) > len(sizes):
            _log.warning("%d of %d pairs were left out to make chosen and rejected alike in length (length_tolerance=%g): one side is nearly always the "
                         "longer one", len(gone), len(sizes), config.length_tolerance)
        for name in gone:
            tallies.setdefault(domains[name], Tally()).drops["pair_tips_the_lengths"] += 1
        return cls(frozenset(sizes) - gone, balance)


def _length(config: PreferenceDataConfig, response: str) -> int:
    return len(judged_text(response, SCOPES[config.kind]))


def write_set(config: PreferenceDataConfig, context: StageContext, units: int, replicas: int, tallies: Tallies, provenance: Mapping[str, Any]) -> None:
    """The set with its card, and the report. Raises `R1MegaError` for a set that no reward model can learn from."""
    kind: type[Row] = PreferencePair if config.kind == "helpful" else JudgedResponse
    chosen = Chosen.of(config, merged(context, units, replicas, kind), tallies)
    if not chosen.ids:
        raise R1MegaError(f"stage '{context.name}' kept nothing; dropped: {drops_table(tallies)['total']}. Give more prompts or responses_per_prompt, "
                          "raise rollout.temperature for responses that differ, or lower min_margin")
    counts = Counts()

    def write(folder: Path) -> None:
        rows = counts.counted(row for row in merged(context, units, replicas, kind) if row.id in chosen.ids)
        write_preferences(folder, *((rows, ()) if config.kind == "helpful" else ((), rows)))
        if config.kind == "safety" and counts.safe in (0, counts.rows.total()):
            raise R1MegaError(f"stage '{context.name}': all {counts.rows.total()} responses are {'safe' if counts.safe else 'unsafe'}; a reward model learns "
                              "nothing from one kind alone. Give other prompts, or responses of an earlier checkpoint")
        files.write_json(folder / "drops.json", drops_table(tallies))
        files.write_text(folder / "README.md", _card(config, context, counts, tallies, chosen.balance, provenance))

    publish(context, "preferences", write)
    report = {"metrics": _metrics(config, counts, tallies, chosen.balance), "drops": drops_table(tallies)}
    publish(context, "report", lambda folder: files.write_json(folder / "report.json", report))


def _metrics(config: PreferenceDataConfig, counts: Counts, tallies: Tallies, balance: LengthBalance | None) -> dict[str, float]:
    """The stage's headline."""
    total, rows = merge([{"total": tally} for tally in tallies.values()])["total"], counts.rows.total()
    if config.kind == "helpful":
        found: dict[str, float] = {"pairs": rows, "mean_margin": counts.margin / rows}
    else:
        found = {"judged": rows, "safe_share": counts.safe / rows}
    found |= {"prompts": total.prompts, "generated": total.generated}
    if balance is not None:
        found |= {"length_ratio_before": balance.before, "length_ratio": balance.after}
    return found | {f"drops/{reason}": count for reason, count in drops_table(tallies)["total"].items()}


def _card(config: PreferenceDataConfig, context: StageContext, counts: Counts, tallies: Tallies, balance: LengthBalance | None,
          provenance: Mapping[str, Any]) -> str:
    """The set's README.md."""
    what = "preference pairs" if config.kind == "helpful" else f"judged responses, {counts.safe:,} of them safe,"
    languages = ", ".join(f"{name} ({count:,})" for name, count in sorted(counts.languages.items()))
    lines = [[domain, f"{counts.rows[domain]:,}", f"{tally.prompts:,}", f"{tally.generated:,}"] for domain, tally in tallies.items()]
    sections = [
        f"# Preferences of stage {context.name}", f"{counts.rows.total():,} {what} in {languages}.",
        "## Domains", table(["domain", "rows", "prompts", "responses"], lines),
        "## Dropped", drops_as_text(tallies),
        "Reasons that begin with `prompt_` count prompts, with `response_` responses; the others count pairs, or responses where there are no pairs."]
    if balance is not None:
        sections += ["## Lengths", f"The chosen are {balance.after:.3f} times as long as the rejected ({balance.before:.3f} before {balance.dropped:,} pairs "
                                   "were left out), in characters of what a reward model reads of them."]
    sections += ["## Provenance", table(["what", "value"], _lines(provenance)),
                 "Each row has its own in `provenance`, with its prompt, which of the prompt's samples it is, and every verdict.",
                 "## Settings", table(["setting", "value"], _lines(_settings(config)))]
    return "\n\n".join(sections) + "\n"


def _lines(values: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    return [[name, inline(value)] for name, value in values.items()]


def _settings(config: PreferenceDataConfig) -> dict[str, Any]:
    names = ("seed", "kind", "responses_per_prompt", "pairs_per_prompt", "judgements", "min_margin", "length_tolerance", "max_prompts", "max_rows")
    return {"domains": ", ".join(config.chosen_domains), **{name: getattr(config, name) for name in names}}
