"""What a stage keeps out of its training data, as an index, and what it tells of that."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from r1mega.data.card import Tallies, Tally, drops_table
from r1mega.data.decontaminate import (
    EVALUATION_INPUTS,
    DecontaminationConfig,
    Decontaminator,
    EvaluationTask,
    EvaluationText,
    Row,
    TaskDecontaminationConfig,
    file_texts,
    prompt_texts,
    row_texts,
    unset_tasks,
)
from r1mega.data.records import read_prompts
from r1mega.errors import DataError
from r1mega.hookspecs import Task
from r1mega.recipe import files
from r1mega.recipe.context import StageContext

from ._publish import publish
from ._setup import make

AnyRow = TypeVar("AnyRow", bound=Row)
CONTAMINATED = "contaminated"  # the reason drops are counted under

_log = logging.getLogger(__name__)


class Settings(Protocol):
    """The config of a stage that makes training data. It may have `decontaminate_against` and, with a task of its own, `task` and `seed`."""

    @property
    def decontamination(self) -> DecontaminationConfig: ...

    @property
    def evaluation_tasks(self) -> dict[str, EvaluationTask]: ...


def evaluations_of(config: Settings, context: StageContext, own: Task | None = None) -> Decontaminator:
    """The index of every evaluation set: inputs, files, the recipe's tasks, and the test split of the stage's `own` task. A task whose data the user has
    not named is left out, with a warning. Raises `DataError` and `ConfigError` as the sets' readers do."""
    unset, settings = unset_tasks(config.evaluation_tasks), config.decontamination
    for name, keys in unset.items() if context.rank == 0 else ():
        _log.warning("%s: nothing is compared with evaluation set '%s': evaluation_tasks.%s has no %s", context.name, name, name, keys)

    def texts() -> Iterator[EvaluationText]:
        for name in EVALUATION_INPUTS:
            if name in context.inputs:
                yield from prompt_texts(name, read_prompts(context.inputs[name]))
        yield from file_texts(getattr(config, "decontaminate_against", {}))
        own_set = own is not None and isinstance(settings, TaskDecontaminationConfig) and settings.test_split
        listed = False
        for name, one in config.evaluation_tasks.items():
            mine = own is not None and (one.task, one.seed) == (config.task, config.seed)  # type: ignore[attr-defined]
            listed |= mine
            if name not in unset and (own_set or not mine):
                task: Task = own if mine and own is not None else make("tasks", one.task, seed=one.seed)
                yield from prompt_texts(name, task.prompts("test"))
        if own is not None and own_set and not listed:
            yield from prompt_texts("test_split", own.prompts("test"))

    return Decontaminator(texts(), ngram=settings.ngram, common_share=settings.common_share)


def compared(config: Settings, evaluations: Decontaminator) -> dict[str, str]:
    """What a card says of the evaluation sets: those that the data were compared with, and those that they were not."""
    against = ", ".join(f"{name} ({count:,} problems)" for name, count in evaluations.sets.items()) or "none"
    unset = ", ".join(f"{name} ({keys} is not set)" for name, keys in unset_tasks(config.evaluation_tasks).items())
    told = {"decontaminated against": against, "not compared, since its data are not known": unset}
    if not config.decontamination.recipe:
        told["the recipe's evaluations"] = "not compared (decontamination.recipe is off)"
    return {name: text for name, text in told.items() if text}


@dataclass
class Screen:
    """Passes the rows of one table that no evaluation set has, and counts the others."""

    table: str
    evaluations: Decontaminator
    tallies: Tallies = field(default_factory=dict)
    contaminated: Counter[str] = field(default_factory=Counter)  # evaluation problem -> drops

    def passes(self, row: Row) -> bool:
        """Whether no text of the row overlaps with an evaluation problem; else it is counted."""
        found = self.evaluations.find(*row_texts(row)) if len(self.evaluations) else None
        if found is not None:
            self.contaminated[found] += 1
            self.tallies.setdefault(row.domain, Tally()).drops[CONTAMINATED] += 1
        return found is None

    def clean(self, rows: Iterable[AnyRow]) -> list[AnyRow]:
        """The rows that pass. Raises `DataError` when none of several does."""
        rows = list(rows)
        kept = [row for row in rows if self.passes(row)]
        if rows and not kept:
            raise self.nothing_left()
        return kept

    def nothing_left(self) -> DataError:
        first = ", ".join(list(self.contaminated)[:3])
        return DataError(f"all {self.contaminated.total()} {self.table} overlap with evaluation sets, first with {first}; give other {self.table}, or set "
                         "decontamination.common_share below 1 if they share a template")

    @property
    def sets(self) -> Counter[str]:
        """Drops by evaluation set."""
        sets: Counter[str] = Counter()
        for problem, count in self.contaminated.items():
            sets[problem.partition("/")[0]] += count
        return sets

    @property
    def metrics(self) -> dict[str, int]:
        """How many rows were dropped, in all and by set; nothing where there was nothing to compare with."""
        if not len(self.evaluations):
            return {}
        name = f"{self.table}_{CONTAMINATED}"
        return {name: self.contaminated.total()} | {f"{name}/{one}": count for one, count in sorted(self.sets.items())}


def publish_screened(context: StageContext, output: str, write: Callable[[Path], None], rows: Mapping[str, int], screens: Sequence[Screen],
                     config: Settings) -> None:
    """Publish an output with its card (README.md) and `drops.json`: `rows` are in its tables, the `screens` are those of these tables."""
    def whole(folder: Path) -> None:
        write(folder)
        drops = {screen.table: drops_table(screen.tallies) for screen in screens}
        files.write_json(folder / "drops.json", drops[screens[0].table] if len(screens) == 1 else drops)
        files.write_text(folder / "README.md", _card(f"{output.capitalize()} of stage {context.name}", rows, screens, config))

    publish(context, output, whole)


def _card(title: str, rows: Mapping[str, int], screens: Sequence[Screen], config: Settings) -> str:
    counts = [f"- {count:,} {name}" for name, count in rows.items()]
    told = [f"- {name}: {text}" for name, text in compared(config, screens[0].evaluations).items()]
    dropped = [f"- {count:,} {screen.table} dropped for {name}" for screen in screens for name, count in sorted(screen.sets.items())]
    return "\n".join([f"# {title}", "", *counts, "", "## Decontamination", "", *told, *(dropped or ["- no row was dropped"])]) + "\n"
