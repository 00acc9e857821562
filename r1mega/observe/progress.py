"""What a person watches while a stage runs: a live line on a terminal, a plain line every so often elsewhere. Used on rank 0 only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

# Label, the metric names it may come from (the first that is there), format. A stage shows those it reports.
COLUMNS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("loss", ("loss",), ".4f"),
    ("reward", ("reward", "reward_mean"), ".3f"),
    ("accuracy", ("accuracy", "reward/accuracy"), ".3f"),
    ("length", ("length", "mean_length", "response_length"), ".1f"),
    ("kl", ("kl",), ".2e"),
    ("entropy", ("entropy",), ".3f"),
    ("clip", ("clip_fraction",), ".3f"),
    ("tok/s", ("tokens_per_second", "tokens_per_s"), "si"),
)


class StageProgress:
    """`with StageProgress("zero", total=60, start=12) as progress: progress.update(13, metrics)`.

    `start` is the last finished step of a resumed stage. Without a terminal a line comes after the first step, then every `every` seconds, and
    after the last one. The time left is estimated from the steps of this run alone.
    """

    def __init__(
        self, stage: str, total: int, start: int = 0, *, console: Console | None = None, every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage, self._total, self._start = stage, total, start
        self._console = console or Console(stderr=True)
        self._every, self._clock = every, clock
        self._began = self._printed_at = clock()
        self._printed = self._step = start
        self._line = ""
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if self._console.is_terminal:
            columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[line]}"))
            self._bar = Progress(*columns, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task(stage, total=total, completed=start, line=f"{start}/{total}")

    def __enter__(self) -> StageProgress:
        if self._bar:
            self._bar.start()
        return self

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show step `step` (counted from 1) as finished, with its global metrics."""
        now = self._clock()
        self._step = step
        self._line = describe(step, self._total, metrics, self._time_left(now))
        if self._bar:
            self._bar.update(self._task, completed=step, line=self._line)
        elif self._printed == self._start or step >= self._total or now - self._printed_at >= self._every:
            self._print(now)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        elif self._printed != self._step:
            self._print(self._clock())

    def _print(self, now: float) -> None:
        self._console.print(f"{self._stage} {self._line}", markup=False, highlight=False, soft_wrap=True)
        self._printed, self._printed_at = self._step, now

    def _time_left(self, now: float) -> float:
        """Seconds."""
        return (now - self._began) / max(self._step - self._start, 1) * max(self._total - self._step, 0)


def describe(step: int, total: int, metrics: Mapping[str, float], seconds_left: float) -> str:
    """One line, such as `12/60  reward 0.412  accuracy 0.380  length 35.2  kl 1.20e-03  tok/s 3.1k  eta 2:31`."""
    shown = [f"{step}/{total}"]
    for label, names, form in COLUMNS:
        value = next((metrics[name] for name in names if name in metrics), None)
        if value is not None:
            shown.append(f"{label} {_si(value) if form == 'si' else format(value, form)}")
    return "  ".join([*shown, f"eta {_clock_time(seconds_left)}"])


def _si(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def _clock_time(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
