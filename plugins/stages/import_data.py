"""Bring in a user's own data: samples to learn from, prompts, preferences, as JSON Lines in the formats of `r1mega.data.records`.

Rows that overlap with what the recipe measures on are left out and counted, before the wanted numbers are taken.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from r1mega import hookimpl
from r1mega.data.decontaminate import EVALUATION_INPUTS, DecontaminationConfig, Decontaminator, EvaluationTask
from r1mega.data.records import (
    JudgedResponse,
    PreferencePair,
    SampleRecord,
    distinct_rows,
    read_rows,
    write_preferences,
    write_prompts,
    write_samples,
)
from r1mega.errors import ConfigError, DataError, nearest
from r1mega.hookspecs import Register
from r1mega.recipe.context import StageContext
from r1mega.split import stable_fraction
from r1mega.types import Prompt

from ._evaluations import Screen, evaluations_of, publish_screened

Row = TypeVar("Row", Prompt, SampleRecord, PreferencePair, JudgedResponse)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportDataConfig:
    """Where the rows lie, a file or a folder each, and how many of a domain are taken."""

    samples_path: str = ""  # rows of a SampleSet; empty: none
    prompts_path: str = ""  # rows of a PromptSet
    pairs_path: str = ""  # pairs of a PreferenceSet
    judged_path: str = ""  # single judged responses of a PreferenceSet
    counts: dict[str, int] = field(default_factory=dict)  # domain -> samples taken of it, at most; a domain that is not named: all
    prompt_counts: dict[str, int] = field(default_factory=dict)  # the same for prompts
    preference_counts: dict[str, int] = field(default_factory=dict)  # the same for pairs, and for judged responses
    choice_seed: int = 0  # which rows are taken where there are more; not the run's seed. A larger count only adds rows
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    evaluation_tasks: dict[str, EvaluationTask] = field(default_factory=dict)  # what rows may not overlap with; composition adds the recipe's

    def __post_init__(self) -> None:
        for name in ("counts", "prompt_counts", "preference_counts"):
            for domain, count in getattr(self, name).items():
                if count < 0:
                    raise ConfigError(f"{name}.{domain}={count}: must be at least 0")


class ImportData:
    """Brings in a user's samples, prompts and preferences, checked line by line, decontaminated, and cut to wanted numbers per domain."""

    version: ClassVar[str] = "2"
    inputs: ClassVar[Mapping[str, str]] = dict.fromkeys(EVALUATION_INPUTS, "PromptSet?")
    outputs: ClassVar[Mapping[str, str]] = {"samples": "SampleSet", "prompts": "PromptSet", "preferences": "PreferenceSet"}
    # An output that another stage reads needs one of these settings.
    output_paths: ClassVar[Mapping[str, tuple[str, ...]]] = {"samples": ("samples_path",), "prompts": ("prompts_path",),
                                                             "preferences": ("pairs_path", "judged_path")}

    def __init__(self, config: ImportDataConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write the three sets; one whose path is empty has no rows. Raises `DataError` with file and line for a malformed row or a repeated id, and
        for a count of a domain without rows."""
        if context.rank:
            return {}
        config, evaluations = self.config, evaluations_of(self.config, context)
        samples = self._table("samples", SampleRecord, config.counts, evaluations)
        prompts = self._table("prompts", Prompt, config.prompt_counts, evaluations)
        pairs = self._table("pairs", PreferencePair, config.preference_counts, evaluations)
        judged = self._table("judged", JudgedResponse, config.preference_counts, evaluations)
        _check("counts", config.counts, samples.domains)
        _check("prompt_counts", config.prompt_counts, prompts.domains)
        _check("preference_counts", config.preference_counts, pairs.domains + judged.domains)
        self._publish(context, "samples", lambda folder: write_samples(folder, samples.taken()), samples)
        self._publish(context, "prompts", lambda folder: write_prompts(folder, prompts.taken()), prompts)
        self._publish(context, "preferences", lambda folder: write_preferences(folder, pairs.taken(), judged.taken()), pairs, judged)
        return samples.metrics() | prompts.metrics() | pairs.metrics() | judged.metrics()

    def _table(self, name: str, kind: type[Row], counts: Mapping[str, int], evaluations: Decontaminator) -> _Table[Row]:
        path: str = getattr(self.config, f"{name}_path")
        return _Table(name, path, kind, counts, self.config.choice_seed, Screen(name, evaluations))

    def _publish(self, context: StageContext, output: str, write: Callable[[Path], None], *tables: _Table[Any]) -> None:
        publish_screened(context, output, write, {table.name: table.count for table in tables}, [table.screen for table in tables], self.config)


class _Table(Generic[Row]):
    """The rows of one path, which may be more than fit into memory: read once to check and count them, and once more when they are written."""

    def __init__(self, name: str, path: str, kind: type[Row], counts: Mapping[str, int], seed: int, screen: Screen) -> None:
        """`name`: samples, prompts, pairs or judged; empty `path`: no rows. Those that do not pass the screen are known by their ids from then on."""
        self.name, self.screen = name, screen
        self._kind: type[Row] = kind
        self._counts, self._seed = counts, seed
        self._files = _files(f"{name}_path", Path(path), f"{name}.jsonl") if path else []
        self._dropped: set[str] = set()
        self.domains: Counter[str] = Counter()  # without what was dropped
        places: dict[str, list[tuple[float, str]]] = {domain: [] for domain in counts}
        for row in self._rows():
            if not screen.passes(row):
                self._dropped.add(row.id)
                continue
            self.domains[row.domain] += 1
            if row.domain in places:
                places[row.domain].append(self._place(row))
        if path and not self.domains:
            if self._dropped:
                raise screen.nothing_left()
            raise DataError(f"{name}_path: {path} has no rows; expected a JSON object on each line with the fields of {kind.__name__}")
        self._ends = {domain: sorted(found)[counts[domain]] for domain, found in places.items() if counts[domain] < len(found)}

    def _rows(self) -> Iterator[Row]:
        return distinct_rows(found for file in self._files for found in read_rows(file, self._kind))

    def _place(self, row: Row) -> tuple[float, str]:
        """Where the row stands in the order in which rows are taken: fixed by seed and id, whatever else there is."""
        return stable_fraction(row.id, self._seed), row.id

    def taken(self) -> Iterator[Row]:
        """The first rows of each domain in that order, at most as many as are wanted of it; they come in the order of the files."""
        return (row for row in self._rows() if row.id not in self._dropped
                and (row.domain not in self._ends or self._place(row) < self._ends[row.domain]))

    def _taken_of(self) -> dict[str, int]:
        """How many rows are taken of each domain."""
        return {domain: min(there, self._counts.get(domain, there)) for domain, there in sorted(self.domains.items())}

    @property
    def count(self) -> int:
        """How many rows are taken."""
        return sum(self._taken_of().values())

    def metrics(self) -> dict[str, int]:
        """How many rows were taken, how many there were, how many were taken of each domain, and how many were dropped."""
        if not self._files:
            return {}
        counted = {self.name: self.count, f"{self.name}_read": self.domains.total() + len(self._dropped)}
        return counted | {f"{self.name}_{domain}": count for domain, count in self._taken_of().items()} | self.screen.metrics


def _check(setting: str, counts: Mapping[str, int], domains: Counter[str]) -> None:
    """Raise `DataError` for a count of a domain of which there is no row; a domain with too few is told in the log."""
    for domain, count in counts.items() if domains else ():
        if count and not domains[domain]:
            raise DataError(f"{setting}.{domain}={count}: no row is of this domain.{nearest(domain, domains)} Domains: {', '.join(sorted(domains))}. "
                            f"Give such rows, or set {setting}.{domain}=0")
        if count > domains[domain]:
            _log.warning("%s.%s=%d: there are %d rows of this domain; all are taken", setting, domain, count, domains[domain])


def _files(setting: str, path: Path, own_name: str) -> list[Path]:
    """The file itself; of a folder the set's own file, as r1mega writes it, or else every *.jsonl in the order of their names."""
    if not path.is_dir():
        return [path]
    found = [path / own_name] if (path / own_name).is_file() else sorted(path.glob("*.jsonl"))
    if not found:
        raise DataError(f"{setting}: folder {path} has no {own_name} and no other .jsonl file")
    return found


@hookimpl
def register_stages(register: Register) -> None:
    register("import_data", ImportData, config=ImportDataConfig)
