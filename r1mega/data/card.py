"""What happened while a set was made, counted by domain, and the card that tells it: the README.md of a `SampleSet`.

The table is the paper's (R1_RECIPE 2.4, Table 5: samples, rounds and tokens by domain), with what was lost on the way beside it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r1mega.data.records import SampleRecord


@dataclass
class Tally:
    """Counts of one domain."""

    prompts: int = 0  # that were sampled
    rounds: int = 0  # of all prompts together
    generated: int = 0  # completions
    correct: int = 0
    drops: Counter[str] = field(default_factory=Counter)  # reason -> completions, or prompts where the reason begins with "prompt_"

    def add(self, other: Tally) -> None:
        for name in ("prompts", "rounds", "generated", "correct"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.drops.update(other.drops)


Tallies = dict[str, Tally]  # by domain


def merge(parts: Iterable[Mapping[str, Tally]]) -> Tallies:
    """The sum of the replicas' counts."""
    total: Tallies = {}
    for part in parts:
        for domain, tally in part.items():
            total.setdefault(domain, Tally()).add(tally)
    return dict(sorted(total.items()))


@dataclass(frozen=True, slots=True)
class DomainRow:
    """One line of the card's table."""

    domain: str
    samples: int
    prompts: int
    without_sample: int
    mean_rounds: float  # of sampling, per prompt
    mean_tokens: float  # of a kept completion, as it was generated
    correct_rate: float


@dataclass
class Kept:
    """What the card tells of a set's rows, counted as they pass: of a row no more than its prompt's id stays in memory."""

    samples: Counter[str] = field(default_factory=Counter)  # by domain
    tokens: Counter[str] = field(default_factory=Counter)  # by domain, as they were generated
    languages: Counter[str] = field(default_factory=Counter)  # samples
    prompts: dict[str, set[str]] = field(default_factory=dict)  # by domain, the ids of those with a sample

    def counted(self, rows: Iterable[SampleRecord]) -> Iterator[SampleRecord]:
        """The rows, counted. They tell `tokens` and `prompt_id` in their provenance."""
        for row in rows:
            self.samples[row.domain] += 1
            self.tokens[row.domain] += row.provenance["tokens"]
            self.languages[row.language] += 1
            self.prompts.setdefault(row.domain, set()).add(row.provenance["prompt_id"])
            yield row


def domain_rows(kept: Kept, tallies: Mapping[str, Tally]) -> list[DomainRow]:
    """One line per domain, and "total" as the last."""
    found = [_row(domain, kept.samples[domain], kept.tokens[domain], len(kept.prompts.get(domain, ())), tally) for domain, tally in tallies.items()]
    total = merge([{"total": tally} for tally in tallies.values()]).get("total", Tally())
    return [*found, _row("total", kept.samples.total(), kept.tokens.total(), len(set().union(*kept.prompts.values())), total)]


def _row(domain: str, samples: int, tokens: int, answered: int, tally: Tally) -> DomainRow:
    return DomainRow(domain, samples, tally.prompts, tally.prompts - answered, _ratio(tally.rounds, tally.prompts), _ratio(tokens, samples),
                     _ratio(tally.correct, tally.generated))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def drops_table(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """`drops.json`: counts by reason, over all and by domain, reasons in alphabetical order."""
    total: Counter[str] = Counter()
    for tally in tallies.values():
        total.update(tally.drops)
    return {"total": _sorted(total), "domains": {domain: _sorted(tally.drops) for domain, tally in tallies.items()}}


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in sorted(counts.items()) if count}


def headline(kept: Kept, tallies: Mapping[str, Tally]) -> dict[str, float]:
    """The stage's metrics."""
    total = domain_rows(kept, tallies)[-1]
    metrics: dict[str, float] = {"samples": total.samples, "prompts": total.prompts, "prompts_without_sample": total.without_sample,
                                 "correct_rate": total.correct_rate, "mean_rounds": total.mean_rounds, "mean_tokens": total.mean_tokens}
    return metrics | {f"drops/{reason}": count for reason, count in drops_table(tallies)["total"].items()}


def dataset_card(title: str, kept: Kept, tallies: Mapping[str, Tally], *, provenance: Mapping[str, Any],
                 settings: Mapping[str, Any], contaminated: Mapping[str, int]) -> str:
    """The card as Markdown. `contaminated` counts drops by the evaluation set that was matched."""
    lines = [[line.domain, f"{line.samples:,}", f"{line.prompts:,}", f"{line.without_sample:,}", f"{line.mean_rounds:.1f}", f"{line.mean_tokens:.1f}",
              f"{line.correct_rate:.1%}"] for line in domain_rows(kept, tallies)]
    languages = ", ".join(f"{name} ({count:,})" for name, count in sorted(kept.languages.items()))
    sections = [
        f"# {title}", f"{kept.samples.total():,} samples" + (f" in {languages}." if languages else "."),
        "## Domains",
        table(["domain", "samples", "prompts", "without a sample", "mean rounds", "mean tokens", "correct"], lines),
        "Rounds are rounds of sampling per prompt; tokens are those of the kept completion as it was generated; correct is the share of all generated.",
        "## Dropped",
        drops_as_text(tallies),
        "## Decontamination",
        table(["matched evaluation set", "dropped"], [[name, f"{count:,}"] for name, count in sorted(contaminated.items())])
        if contaminated else "No prompt and no answer overlaps with an evaluation set.",
        "## Provenance", table(["what", "value"], [[name, inline(value)] for name, value in provenance.items()]),
        "Each row has its own in `provenance`: checkpoint or model, prompt, round, sample, rewards with their versions, filters passed, rewriter.",
        "## Settings", table(["setting", "value"], [[name, inline(value)] for name, value in settings.items()])]
    return "\n\n".join(sections) + "\n"


def drops_as_text(tallies: Mapping[str, Tally]) -> str:
    """`drops_table` in Markdown."""
    drops = drops_table(tallies)
    if not drops["total"]:
        return "Nothing."
    return table(["reason", "dropped", *drops["domains"]], [[reason, f"{count:,}", *(f"{part.get(reason, 0):,}" for part in drops["domains"].values())]
                                                            for reason, count in drops["total"].items()])


def inline(value: Any) -> str:
    """A setting as one line of text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={inline(item)}" for name, item in value.items()) or "none"
    return str(value)


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in line) + " |" for line in lines)
