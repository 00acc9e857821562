"""A run folder read into dataclasses: what every stage is, made and measured. Reads only; what is absent or torn leaves a gap, and a notice."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from r1mega.errors import UserError
from r1mega.recipe import files, status
from r1mega.recipe.artifacts import Manifest, RunFolder

SCORES = ("pass_at_1", "cons_at_k", "format_rate", "language_consistency", "refusal_rate_unsafe", "refusal_rate_safe")
EVALUATION = (*SCORES, "pass_at_1_ci95", "mean_length", "problems", "samples_per_problem")
DOMAINS = "by_domain"  # under this key an evaluation repeats its figures by domain
_PASS_AT_K = re.compile(r"pass_at_[2-9]\d*|pass_at_1\d+")
_PHASES = {"generate_seconds": "generate", "score_seconds": "score", "logprob_seconds": "log-probs", "train_seconds": "train"}
FLOPS = ("training", "inference", "generation", "evaluation")  # kinds of compute; the last is not in the sum


@dataclass(frozen=True)
class Series:
    """One metric over the steps of a stage; values that were not finite are left out and counted."""

    steps: tuple[float, ...]
    values: tuple[float, ...]  # as long as `steps`
    not_finite: int = 0


@dataclass(frozen=True)
class Input:
    """An edge of the graph."""

    name: str
    source: str  # the node it comes from
    kind: str  # the artifact's type


@dataclass(frozen=True)
class Evaluation:
    """One measurement on held-out problems: `values` holds some of `EVALUATION`."""

    stage: str
    benchmark: str  # or domain; empty for all of the stage's own task
    when: str  # "before" or "after" training; empty for a stage that only measures
    values: Mapping[str, Any]

    @property
    def pass_at_k(self) -> tuple[int, float] | None:
        """The largest k that pass@k was measured for, and its value."""
        found = [(int(name.rpartition("_")[2]), value) for name, value in self.values.items() if _PASS_AT_K.fullmatch(name)]
        return max(found, default=None)


@dataclass(frozen=True)
class Stage:
    """One node with the newest result in its folder."""

    name: str
    kind: str
    state: str
    reasons: tuple[str, ...]  # why it is not done
    inputs: tuple[Input, ...]
    folder: Path
    manifest: Manifest | None
    metrics: Mapping[str, Any]
    history: Mapping[str, Series] = field(default_factory=dict)  # of metrics.jsonl, and held_out/* of the evaluations on the way
    drops: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # artifact -> {reason: rows}

    @property
    def seconds(self) -> float | None:
        return self.manifest.seconds if self.manifest and self.manifest.seconds else None

    @property
    def starts_from(self) -> str | None:
        """The node whose checkpoint this one trains or measures."""
        return next((one.source for one in self.inputs if one.kind == "Checkpoint"), None)

    @property
    def flops(self) -> dict[str, float]:
        """By kind; of a stage that has not finished, what its steps have told."""
        found = {kind: number(self.metrics.get(f"flops_{kind}")) for kind in FLOPS}
        told = {kind: sum(self.history[f"flops_{kind}"].values) for kind in FLOPS if f"flops_{kind}" in self.history}
        return told | {kind: value for kind, value in found.items() if value is not None}

    @property
    def model_flops(self) -> float | None:
        """All but evaluation; None where nothing was counted."""
        return sum(value for kind, value in self.flops.items() if kind != "evaluation") or None

    @property
    def evaluations(self) -> list[Evaluation]:
        return evaluations_of(self.name, self.metrics)

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase, summed over the steps; what the stage took beside them is `other` (start-up, evaluation, checkpoints)."""
        found = {label: sum(self.history[key].values) for key, label in _PHASES.items() if key in self.history}
        if "train" not in found and "seconds" in self.history:  # a stage that does nothing but train
            found["train"] = sum(self.history["seconds"].values)
        if self.seconds:
            found["other"] = max(0.0, self.seconds - sum(found.values()))
        return {name: value for name, value in found.items() if value > 0}


@dataclass(frozen=True)
class Run:
    """A run folder; `stages` in an order in which every node comes after its inputs."""

    root: Path
    recipe: str
    description: str
    seed: Any
    overrides: tuple[str, ...]
    stages: tuple[Stage, ...]
    notices: tuple[str, ...]  # what a reader must know: warnings, errors, what could not be read

    @property
    def versions(self) -> dict[str, str]:
        """Package -> version, several where the stages were made by different ones."""
        found: dict[str, dict[str, None]] = {}
        for stage in self.stages:
            for name, version in (stage.manifest.versions if stage.manifest else {}).items():
                found.setdefault(name, {})[version] = None
        return {name: ", ".join(versions) for name, versions in found.items()}


def collect(run_dir: Path) -> Run:
    """Read the run in `run_dir`. Raises `UserError` when no run lies there."""
    folder = RunFolder(run_dir)
    if not folder.graph.is_file():
        raise UserError(f"{run_dir}: no run here (no {folder.graph.name}); name the output_dir of an `r1mega run`")
    graph = files.read_json(folder.graph)
    if not isinstance(graph, dict) or not isinstance(graph.get("nodes"), dict):
        raise UserError(f"{folder.graph}: expected an object with 'nodes', as r1mega run writes it")
    notices: list[str] = []
    states = _states(folder, notices)
    config = yaml.safe_load(folder.config.read_text(encoding="utf-8")) if folder.config.is_file() else {}
    stages = tuple(_stage(name, node, graph["nodes"], folder, states.get(name, ("pending", ())), notices) for name, node in graph["nodes"].items())
    return Run(run_dir.absolute(), str(graph.get("recipe", run_dir.name)), str(graph.get("description") or ""), graph.get("seed"),
               tuple(map(str, config.get("overrides") or ())), stages, tuple(notices))


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The byte offset and the object of every whole line of a JSON Lines file; others are skipped. Nothing for a missing file."""
    if not path.is_file():
        return
    offset = 0
    with path.open("rb") as file:
        for line in file:
            row = parse(line)
            if row is not None:
                yield offset, row
            offset += len(line)


def parse(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None for anything else."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def evaluations_of(stage: str, metrics: Mapping[str, Any]) -> list[Evaluation]:
    """The evaluations among a stage's metrics. Benchmarks and domains are nested or named `<benchmark>/<metric>`; what was measured before training
    has `_before` in its name."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for key, value in leaves(metrics):
        if is_evaluation(key):
            benchmark, _, name = key.replace("_before", "").rpartition("/")
            groups.setdefault((benchmark.removeprefix(DOMAINS).strip("/"), "before" if "_before" in key else "after"), {})[name] = value
    scored = {key: values for key, values in groups.items() if any(name in values for name in SCORES)}
    found = []
    for benchmark in dict.fromkeys(benchmark for benchmark, _ in scored):
        trained = (benchmark, "before") in scored
        found += [Evaluation(stage, benchmark, when if trained else "", scored[benchmark, when]) for when in ("before", "after") if (benchmark, when) in scored]
    return found


def number(value: object) -> float | None:
    """A number, NaN and infinities included (JSON Lines hold them as text); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        return None
    return float(value)


def is_evaluation(key: str) -> bool:
    """Whether a metric (of `leaves`) belongs to an evaluation."""
    where, _, name = key.replace("_before", "").rpartition("/")
    return not where.endswith("reward_terms") and (name in EVALUATION or _PASS_AT_K.fullmatch(name) is not None)


def leaves(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested metrics as `outer/inner` and value."""
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _states(folder: RunFolder, notices: list[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """State and reasons by node, as `r1mega status` has them; as last written down where that cannot be told."""
    try:
        verdicts, running = status.inspect(folder.root)
    except UserError as error:
        notices.append(f"States are as last written down, not checked: {error}")
        summary = files.read_json(folder.summary) if folder.summary.is_file() else {}
        return {name: (str(stage.get("state", "pending")), ()) for name, stage in (summary.get("stages") or {}).items()}
    if running and any(verdict.state == "running" for verdict in verdicts.values()):
        notices.append(f"The run was still going when this report was written ({running}).")
    return {name: (verdict.state, verdict.reasons) for name, verdict in verdicts.items()}


def _stage(name: str, node: Mapping[str, Any], nodes: Mapping[str, Any], folder: RunFolder, state: tuple[str, tuple[str, ...]],
           notices: list[str]) -> Stage:
    here = folder.stage(name)
    inputs = []
    for label, reference in node.get("inputs", {}).items():
        source, _, output = reference.partition(".")
        inputs.append(Input(label, source, str(nodes.get(source, {}).get("output_types", {}).get(output, ""))))
    manifest, metrics = _manifest(here, notices)
    if manifest:
        notices += [f"{name}: {warning}" for warning in manifest.warnings]
        notices += [f"{name}: {manifest.state}: {manifest.error}"] if manifest.error else []
    history = _history(here / "metrics.jsonl")
    history |= _held_out(here, metrics)
    return Stage(name, str(node.get("stage", "")), *state, tuple(inputs), here, manifest, metrics, history, _drops(here, notices))


def _manifest(here: Path, notices: list[str]) -> tuple[Manifest | None, Mapping[str, Any]]:
    try:
        manifest = Manifest.load(here)
        metrics = manifest.metrics if manifest else {}
        if not metrics and (here / "result.json").is_file():
            metrics = files.read_json(here / "result.json").get("metrics", {})
    except UserError as error:
        notices.append(str(error))
        return None, {}
    return manifest, metrics


def _history(path: Path) -> dict[str, Series]:
    """Every number of metrics.jsonl by name; a step that is there again replaces what came before it."""
    steps: dict[float, dict[str, Any]] = {}
    for _, row in rows(path):
        step = number(row.get("step"))
        if step is not None and math.isfinite(step):
            steps[step] = row
    found: dict[str, tuple[list[float], list[float], list[float]]] = {}  # steps, values, steps where it was not finite
    for step, row in sorted(steps.items()):
        for key, raw in row.items():
            value = None if key in ("step", "time") else number(raw)
            if value is None:
                continue
            xs, ys, bad = found.setdefault(key, ([], [], []))
            if math.isfinite(value):
                xs.append(step)
                ys.append(value)
            else:
                bad.append(step)
    return {key: Series(tuple(xs), tuple(ys), len(bad)) for key, (xs, ys, bad) in found.items()}


def _held_out(here: Path, metrics: Mapping[str, Any]) -> dict[str, Series]:
    """`held_out/<metric>` where a stage evaluated on its way: before, at some steps, after."""
    points: dict[str, dict[float, float]] = {}
    for path in sorted(here.glob("evaluation_*.json")):
        at = path.stem.removeprefix("evaluation_")
        values = parse(path.read_bytes())
        if values is not None and (at.isdigit() or at == "before"):
            _add(points, 0.0 if at == "before" else float(at), values)
    if points and (last := number(metrics.get("steps"))):
        _add(points, last, metrics)
    return {f"held_out/{name}": Series(tuple(sorted(found)), tuple(found[step] for step in sorted(found)))
            for name, found in points.items() if len(found) > 2}


def _add(points: dict[str, dict[float, float]], step: float, values: Mapping[str, Any]) -> None:
    for name in (*SCORES, "mean_length"):
        value = number(values.get(name))
        if value is not None and math.isfinite(value):
            points.setdefault(name, {})[step] = value


def _drops(here: Path, notices: list[str]) -> dict[str, dict[str, int]]:
    found = {}
    for path in sorted(here.glob("artifacts/*/drops.json")):
        reasons = parse(path.read_bytes())
        if reasons is None:
            notices.append(f"{path}: expected an object {{reason: count}}; left out")
            continue
        found[path.parent.name] = {str(reason): int(count) for reason, count in reasons.items() if isinstance(count, int)}
    return {name: reasons for name, reasons in found.items() if reasons}
