"""`r1mega status`: the graph of a run folder as it stands now."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from r1mega.errors import UserError
from r1mega.recipe import files, lock, rebuild
from r1mega.recipe.artifacts import RunFolder
from r1mega.recipe.assess import Verdict, assess, headline
from r1mega.recipe.graph import Graph

_COLOURS = {"done": "green", "running": "cyan", "stale": "yellow", "failed": "red", "interrupted": "yellow", "pending": "dim", "damaged": "red"}


def inspect(run_dir: Path) -> tuple[dict[str, Verdict], str | None]:
    """The verdict on every stage as last composed in `run_dir`, and who is running it now. Raises `UserError` where no run lies."""
    folder = RunFolder(run_dir)
    if not (folder.graph.is_file() and folder.config.is_file()):
        raise UserError(f"{run_dir}: no run here (no {folder.graph.name}); name the output_dir of an `r1mega run`")
    trees = yaml.safe_load(folder.config.read_text(encoding="utf-8"))["stages"]
    verdicts = assess(Graph.from_json(files.read_json(folder.graph), trees), folder)
    running = lock.holder(folder.lock)
    if running:
        verdicts = {name: _running(verdict) for name, verdict in verdicts.items()}
    return verdicts, running


def _running(verdict: Verdict) -> Verdict:
    if verdict.manifest and verdict.manifest.state == "running":
        return dataclasses.replace(verdict, state="running", reasons=(f"attempt {verdict.manifest.epoch}",))
    return verdict


def verified(verdict: Verdict, folder: RunFolder) -> Verdict:
    """The verdict after its outputs have been read: state `damaged` where they are not what the manifest says. Also finds what no stage reads."""
    wrong = rebuild.find_damage(verdict, folder)
    return dataclasses.replace(verdict, state="damaged", reasons=wrong) if wrong else verdict


def show(run_dir: Path, as_json: bool, *, verify: bool = False) -> int:
    """Print the state of every stage: a table, or one JSON object `{"run_dir", "running_by", "stages": {name: {...}}}`. The exit code: 1 if a
    result is damaged, which `verify` looks for."""
    verdicts, running = inspect(run_dir)
    folder = RunFolder(run_dir)
    if verify:
        verdicts = {name: verified(verdict, folder) for name, verdict in verdicts.items()}
    damaged = [name for name, one in verdicts.items() if one.state == "damaged"]
    if as_json:
        rows = {name: _row(one) for name, one in verdicts.items()}
        print(json.dumps({"run_dir": str(run_dir), "running_by": running, "stages": rows}, ensure_ascii=False))
        return 1 if damaged else 0
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("stage", "kind", "state", "time", "headline", "why", box=box.SIMPLE_HEAD)
    for name, one in verdicts.items():
        time = f"{one.seconds:.1f} s" if one.seconds is not None else ""
        why = Text("; ".join(one.reasons))
        table.add_row(Text(name), one.node.stage, Text(one.state, _COLOURS[one.state]), time, headline(one.metrics), why)
    console = Console()
    console.print(table)
    if running:
        console.print(f"running: {running}")
    if damaged:
        overrides = yaml.safe_load(folder.config.read_text(encoding="utf-8"))["overrides"]
        print(f"damaged: {', '.join(damaged)}; to set aside and make again: {rebuild.command(overrides, '--rebuild-damaged')}", file=sys.stderr)
    return 1 if damaged else 0


def _row(verdict: Verdict) -> dict[str, Any]:
    row = {"kind": verdict.node.stage, "state": verdict.state, "reasons": list(verdict.reasons), "seconds": verdict.seconds,
           "metrics": verdict.metrics, "headline": headline(verdict.metrics), "fingerprint": verdict.fingerprint}
    return {key: files.plain(value) for key, value in row.items()}
