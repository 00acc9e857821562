"""A run on one screen, as `r1mega run` ends and `python -m r1mega.observe.summary RUN_DIR` shows it again.

A few samples in full; the scorecard, which has a row for every evaluation of a model; where the files are. A recipe that evaluates nothing shows its
stages, and the accuracy before and after every RL stage. It reads what is there: a run that was cut short, or a stage without some metric, leaves a gap
and not an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from r1mega.errors import R1MegaError, UserError
from r1mega.observe.report import paper

SAMPLES = 3  # shown of the only RL stage; of several, one each
FEW = 4  # stages whose files are listed one by one
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


def number(value: object, digits: int = 3) -> str:
    """A metric for a person: `digits` decimals for fractions, none for counts, a dash for what is missing."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-" if value is None else str(value)
    whole = abs(value) >= 100 or (float(value).is_integer() and abs(value) > 1)
    return f"{value:.0f}" if whole else f"{value:.{digits}f}"


def interval(value: object) -> str:
    """A 95% interval, stored as its two ends or as its half-width; empty when there is none."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return f" [{number(value[0])}, {number(value[1])}]"
    return f" ± {number(value)}" if isinstance(value, int | float) else ""


def samples(stage_dir: Path, count: int = SAMPLES) -> list[Mapping[str, Any]]:
    """`count` samples of the stage's last step that wrote some, the best and at the end the worst one; a line cut off by a crash is left out."""
    rows: list[Mapping[str, Any]] = [row for path in sorted(stage_dir.rglob("samples*.jsonl"))
                                     for row in _rows(path) if isinstance(row.get("completion"), str)]
    last = max((_step(row) for row in rows), default=0)
    ranked = sorted((row for row in rows if _step(row) == last), key=_reward, reverse=True)
    if count == 1 or len(ranked) <= count:
        return ranked[:count]
    return [*ranked[: count - 1], ranked[-1]]


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


def _scorecard(stages: Mapping[str, Any], run_dir: Path) -> Table | None:
    """A row for every evaluation, in the graph's order; None for a recipe that evaluates nothing."""
    nodes, settings = _nodes(run_dir), _settings(run_dir)
    table = Table("model", "measured", "pass@1", "language", "format", "tokens", title="Scorecard", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
                  show_edge=False)
    for name, stage in stages.items():
        if nodes.get(name, {}).get("stage") != "evaluate":
            continue
        source, metrics = str(nodes[name].get("inputs", {}).get("policy", "")).partition(".")[0], _metrics(stage)
        whole = all(node in nodes for node, _ in paper.MODELS.values())  # the names mean something in the whole recipe alone
        called = {node: f" ({model})" for model, (node, _) in paper.MODELS.items()} if whole else {}
        evaluation = (settings.get(name) or {}).get("evaluation") or {}
        shown = [number(metrics.get(key)) for key in ("language_consistency", "format_rate")]
        table.add_row(escape(f"{source}{called.get(source, '')}"), escape(str(evaluation.get("metric", "-"))), _with_margin(metrics), *shown,
                      number(metrics.get("mean_length"), 1))
    return table if table.row_count else None


def _with_margin(metrics: Mapping[str, Any]) -> str:
    ends = metrics.get("pass_at_1_ci95")
    half = f" ± {(ends[1] - ends[0]) / 2:.3f}" if isinstance(ends, list | tuple) and len(ends) == 2 else interval(ends)
    return f"{number(metrics.get('pass_at_1'))}{half}"


def _nodes(run_dir: Path) -> Mapping[str, Any]:
    """The graph's nodes as the run wrote them down; none where it did not."""
    path = run_dir / "graph.json"
    nodes = json.loads(path.read_text(encoding="utf-8")).get("nodes") if path.is_file() else None
    return nodes if isinstance(nodes, dict) else {}


def _settings(run_dir: Path) -> Mapping[str, Any]:
    """Every stage's settings."""
    path = run_dir / "config.yaml"
    stages = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("stages") if path.is_file() else None
    return stages if isinstance(stages, dict) else {}


def _metrics(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    metrics = stage.get("metrics")
    return metrics if isinstance(metrics, dict) else {}


def _before_after(name: str, metrics: Mapping[str, Any]) -> str:
    """The line that says what RL did."""
    before = f"{number(metrics['pass_at_1_before'])}{interval(metrics.get('pass_at_1_ci95_before'))}"
    return f"{name}: pass@1 {before} before, {number(metrics.get('pass_at_1'))}{interval(metrics.get('pass_at_1_ci95'))} after"


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
    found = [("report", run_dir / "report.html"), ("summary", run_dir / "summary.json"), ("log", run_dir / "run.log")]
    if len(stages) > FEW:
        found.append(("stages", run_dir / "stages"))
    for name in stages if len(stages) <= FEW else ():
        stage_dir = run_dir / "stages" / name / "current"
        found += [(f"{name}: metrics", stage_dir / "metrics.jsonl"), (f"{name}: checkpoints", stage_dir / "checkpoints"),
                  (f"{name}: rollouts", stage_dir / "rollouts")]
    return [(what, path) for what, path in found if path.exists()]


def show(run_dir: Path, console: Console) -> None:
    """Print the summary of the run in `run_dir`. Raises `UserError` when it is none."""
    summary = read_summary(run_dir)
    stages = {name: stage for name, stage in summary["stages"].items() if isinstance(stage, dict)}
    scorecard = _scorecard(stages, run_dir)
    console.rule(escape(f"{summary.get('recipe', run_dir.name)}, seed {summary.get('seed', '-')}"))
    if scorecard is None:
        console.print(_stage_table(stages))
    learned = [name for name, stage in stages.items() if "pass_at_1_before" in _metrics(stage)]
    for name in learned:
        if rows := samples(run_dir / "stages" / name / "current", SAMPLES if len(learned) == 1 else 1):
            console.print(f"\n{'Samples' if len(rows) > 1 else 'A sample'} of [bold]{escape(name)}[/bold]:")
            for row in rows:
                _show_sample(console, row)
    console.print()
    if scorecard is not None:
        console.print(scorecard)
        console.print(f"\n{_progress(stages)}", highlight=False)
    for name in learned if scorecard is None or len(learned) == 1 else ():  # of several, the scorecard has what came before
        console.print(f"[bold green]{escape(_before_after(name, _metrics(stages[name])))}[/bold green]", highlight=False)
    for what, path in files(run_dir, stages):
        console.print(f"{escape(what)}: {escape(str(path))}", highlight=False, soft_wrap=True)  # whole, to be copied


def _progress(stages: Mapping[str, Any]) -> str:
    done = [stage for stage in stages.values() if stage.get("state") == "done"]
    seconds = sum(stage.get("seconds") or 0 for stage in done)
    return f"{len(done)} of {len(stages)} stages done, in {seconds / 60:.1f} minutes"


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
