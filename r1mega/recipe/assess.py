"""What there is to do: each node's state in a run folder, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from r1mega.recipe import fingerprint
from r1mega.recipe.artifacts import Manifest, RunFolder
from r1mega.recipe.fingerprint import Basis
from r1mega.recipe.graph import Graph, GraphNode

NodeState = Literal["done", "running", "stale", "failed", "interrupted", "pending", "damaged"]  # damaged: only where the bytes have been read


@dataclass(frozen=True)
class Verdict:
    """A node judged. `basis` and `fingerprint` are None while an input has yet to be made (its digest is not known)."""

    node: GraphNode
    state: NodeState
    reasons: tuple[str, ...]  # why it is not done, or why it is stale
    basis: Basis | None = None
    fingerprint: str | None = None
    inputs: Mapping[str, dict[str, str]] = field(default_factory=dict)  # as in the manifest
    manifest: Manifest | None = None  # of this fingerprint if there is one, else of the newest attempt

    @property
    def seconds(self) -> float | None:
        return round(self.manifest.seconds, 3) if self.manifest and self.manifest.state != "running" else None

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.manifest.metrics if self.manifest else {}


def assess(graph: Graph, folder: RunFolder) -> dict[str, Verdict]:
    """Judge all nodes, in order."""
    verdicts: dict[str, Verdict] = {}
    for name, node in graph.nodes.items():
        verdicts[name] = judge(node, folder, verdicts)
    return verdicts


def judge(node: GraphNode, folder: RunFolder, before: Mapping[str, Verdict]) -> Verdict:
    """Judge one node, given the verdicts on those it reads from."""
    newest = Manifest.load(folder.stage(node.name))
    waiting = [f"input {name}: {source} has to run first" for name, source in _sources(node).items() if before[source].state != "done"]
    if waiting:
        return Verdict(node, "stale" if newest else "pending", tuple(waiting), manifest=newest)
    inputs = _inputs(node, before)
    basis = fingerprint.basis_of(node, {name: one["digest"] for name, one in inputs.items()}, folder.digests)
    name = fingerprint.fingerprint(basis)
    stage_dir = folder.stage(node.name, name)
    manifest = Manifest.load(stage_dir)
    if manifest is None:
        changes = fingerprint.explain(newest.basis, basis) if newest else ["not run yet"]
        return Verdict(node, "stale" if newest else "pending", tuple(changes), basis, name, inputs, newest)
    state, reasons = _state_of(manifest, manifest.missing(node, stage_dir))
    return Verdict(node, state, reasons, basis, name, inputs, manifest)


def _sources(node: GraphNode) -> dict[str, str]:
    return {name: reference.partition(".")[0] for name, reference in node.inputs.items()}


def _inputs(node: GraphNode, before: Mapping[str, Verdict]) -> dict[str, dict[str, str]]:
    found = {}
    for name, reference in node.inputs.items():
        source, _, output = reference.partition(".")
        manifest = before[source].manifest
        assert manifest, f"'{source}' is done without a manifest"
        found[name] = {"from": reference, "fingerprint": manifest.fingerprint, "digest": manifest.artifacts[output]["digest"]}
    return found


def _state_of(manifest: Manifest, missing: list[str]) -> tuple[NodeState, tuple[str, ...]]:
    if manifest.state == "done":
        return ("pending", tuple(f"its output {name} is gone" for name in missing)) if missing else ("done", ())
    if manifest.state == "failed":
        return "failed", (f"attempt {manifest.epoch}: {manifest.error}",)
    return "interrupted", (f"attempt {manifest.epoch} did not finish; it resumes",)


def headline(metrics: Mapping[str, Any]) -> str:
    """The one metric to show beside a stage, with where it came from: `pass_at_1` if it has that, else its first number."""
    numbers = {name: f"{value:.4g}" for name, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    if not numbers:
        return ""
    name = "pass_at_1" if "pass_at_1" in numbers else next(iter(numbers))
    start = f"{numbers[f'{name}_before']} -> " if f"{name}_before" in numbers else ""
    return f"{name} {start}{numbers[name]}"
