"""A finished run on one screen: `python -m r1mega.observe.summary RUN_DIR`.

Shows the stages, the accuracy before and after every RL stage, a few samples in full, and where the files are. It reads what is there: a run
that was cut short, or a stage without some metric, leaves a gap and not an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from r1mega.errors import R1MegaError, UserError

SAMPLES = 3  # shown per RL stage
LONGEST = 1200  # characters of a sample that are shown
# metric -> how the table heads it
COLUMNS = {"pass_at_1": "pass@1", "cons_at_k": "cons@k", "format_rate": "format", "mean_length": "length", "language_consistency": "language"}


def read_summary(run_dir: Path) -> Mapping[str, Any]:
    """The run's `summary.json`. Raises `UserError` when there is none or it cannot be read."""
    path = run_dir / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is '{run_dir}' the output folder of a run that has begun?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(summary, dict) or not isinstance(summary.get("stages"), dict):
        raise UserError(f"{path}: expected an object with 'stages', as r1mega run writes it")
    return summary


def number(value: object) -> str:
    """A metric for a person: three decimals for fractions, none for counts, a dash for what is missing."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-" if value is None else str(value)
    whole = abs(value) >= 100 or (float(value).is_integer() and abs(value) > 1)
    return f"{value:.0f}" if whole else f"{value:.3f}"


def interval(value: object) -> str:
    """A 95% interval, stored as its two ends or as its half-width; empty when there is none."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return f" [{number(value[0])}, {number(value[1])}]"
    return f" ± {number(value)}" if isinstance(value, int | float) else ""


def samples(stage_dir: Path) -> list[Mapping[str, Any]]:
    """Samples of the stage's last step that wrote some, best and worst ones first; a line cut off by a crash is left out."""
    rows: list[Mapping[str, Any]] = [row for path in sorted(stage_dir.rglob("samples*.jsonl"))
                                     for row in _rows(path) if isinstance(row.get("completion"), str)]
    last = max((_step(row) for row in rows), default=0)
    ranked = sorted((row for row in rows if _step(row) == last), key=_reward, reverse=True)
    if len(ranked) <= SAMPLES:
        return ranked
    return [*ranked[: SAMPLES - 1], ranked[-1]]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _step(row: Mapping[str, Any]) -> int:
    step = row.get("step", 0)
    return step if isinstance(step, int) else 0


def _reward(row: Mapping[str, Any]) -> float:
    reward = row.get("reward", row.get("score"))
    return float(reward) if isinstance(reward, int | float) else 0.0


def _stage_table(stages: Mapping[str, Any]) -> Table:
    shown = [key for key in COLUMNS if any(key in _metrics(stage) for stage in stages.values())]
    table = Table("stage", "state", "seconds", *(COLUMNS[key] for key in shown), title="Stages", title_justify="left")
    for name, stage in stages.items():
        values = [number(_metrics(stage).get(key)) for key in shown]
        table.add_row(escape(name), escape(str(stage.get("state", "-"))), number(stage.get("seconds")), *values)
    return table


def _metrics(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    metrics = stage.get("metrics")
    return metrics if isinstance(metrics, dict) else {}


def _before_after(name: str, metrics: Mapping[str, Any]) -> str | None:
    """The line that says what RL did; None for a stage that measured no accuracy."""
    if "pass_at_1" not in metrics:
        return None
    after = f"{number(metrics['pass_at_1'])}{interval(metrics.get('pass_at_1_ci95'))}"
    before = metrics.get("pass_at_1_before")
    if before is None:
        return f"{name}: pass@1 {after}"
    return f"{name}: pass@1 {number(before)}{interval(metrics.get('pass_at_1_before_ci95'))} before, {after} after"


def _show_sample(console: Console, row: Mapping[str, Any]) -> None:
    prompt = str(row.get("question", row.get("prompt", ""))).strip()
    completion = row["completion"].strip()
    if len(completion) > LONGEST:
        completion = f"{completion[:LONGEST]} ... ({len(completion)} characters)"
    told = [f"{label} {number(row[key])}" for key, label in (("step", "step"), ("reward", "reward"), ("score", "score")) if key in row]
    if row.get("answer") is not None:
        told.append(f"reference answer {row['answer']}")
    console.print(Panel(f"[bold]{escape(prompt)}[/bold]\n{escape(completion)}", title=escape(", ".join(told)) or None, title_align="left"))


def files(run_dir: Path, stages: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """What a reader may want to open next; only what exists."""
    found = [("summary", run_dir / "summary.json"), ("report", run_dir / "report.html"), ("log", run_dir / "run.log")]
    for name in stages:
        stage_dir = run_dir / "stages" / name / "current"
        found += [(f"{name}: metrics", stage_dir / "metrics.jsonl"), (f"{name}: checkpoints", stage_dir / "checkpoints"),
                  (f"{name}: rollouts", stage_dir / "rollouts")]
    return [(what, path) for what, path in found if path.exists()]


def show(run_dir: Path, console: Console) -> None:
    """Print the summary of the run in `run_dir`. Raises `UserError` when it is none."""
    summary = read_summary(run_dir)
    stages = {name: stage for name, stage in summary["stages"].items() if isinstance(stage, dict)}
    console.rule(escape(f"{summary.get('recipe', run_dir.name)}, seed {summary.get('seed', '-')}"))
    console.print(_stage_table(stages))
    for name, stage in stages.items():
        stage_dir = run_dir / "stages" / name / "current"
        if "pass_at_1_before" in _metrics(stage) and (rows := samples(stage_dir)):
            console.print(f"\nSamples of [bold]{escape(name)}[/bold]:")
            for row in rows:
                _show_sample(console, row)
    console.print()
    for name, stage in stages.items():
        if line := _before_after(name, _metrics(stage)):
            console.print(f"[bold green]{escape(line)}[/bold green]", highlight=False)
    table = Table.grid(padding=(0, 2))
    for what, path in files(run_dir, stages):
        table.add_row(escape(what), escape(str(path)))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 when the folder is no run."""
    parser = argparse.ArgumentParser(prog="python -m r1mega.observe.summary", description="Show a run: accuracy, samples, files.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    run_dir = parser.parse_args(argv).run_dir
    try:
        show(run_dir, Console())
    except R1MegaError as error:
        print(f"r1mega: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
