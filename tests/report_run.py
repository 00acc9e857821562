"""A run folder of the whole R1 graph as `r1mega run` leaves it, with made-up measurements: fast to write, every part of the report has data."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from r1mega.recipe import files, fingerprint
from r1mega.recipe.artifacts import Manifest, RunFolder
from r1mega.recipe.graph import Graph, GraphNode

HOSTILE = '<think>hmm, wait: <script>document.title="owned"</script> is <b>not</b> it & "so"</think><img src=x onerror=alert(1)>\u202e7\ud800\x00'

# node -> (stage, inputs, output types)
R1: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "corpus": ("general_data", {}, {"prompts": "PromptSet", "preferences": "PreferenceSet"}),
    "base": ("pretrain", {}, {"checkpoint": "Checkpoint"}),
    "zero": ("rl", {"policy": "base.checkpoint"}, {"checkpoint": "Checkpoint"}),
    "cold_start_data": ("sample", {"policy": "zero.checkpoint"}, {"samples": "SampleSet"}),
    "cold_start": ("sft", {"policy": "base.checkpoint", "data": "cold_start_data.samples"}, {"checkpoint": "Checkpoint"}),
    "reasoning_rl": ("rl", {"policy": "cold_start.checkpoint"}, {"checkpoint": "Checkpoint"}),
    "sft_data": ("sample", {"policy": "reasoning_rl.checkpoint", "general": "corpus.prompts"}, {"samples": "SampleSet"}),
    "sft": ("sft", {"policy": "base.checkpoint", "data": "sft_data.samples"}, {"checkpoint": "Checkpoint"}),
    "reward_helpful": ("reward_model", {"policy": "base.checkpoint", "data": "corpus.preferences"}, {"model": "RewardModel"}),
    "reward_safety": ("reward_model", {"policy": "base.checkpoint", "data": "corpus.preferences"}, {"model": "RewardModel"}),
    "all_scenario_rl": ("rl", {"policy": "sft.checkpoint", "helpful": "reward_helpful.model", "safety": "reward_safety.model"},
                        {"checkpoint": "Checkpoint"}),
    "student_base": ("pretrain", {}, {"checkpoint": "Checkpoint"}),
    "distill_student": ("sft", {"policy": "student_base.checkpoint", "data": "sft_data.samples"}, {"checkpoint": "Checkpoint"}),
    "student_rl": ("rl", {"policy": "student_base.checkpoint"}, {"checkpoint": "Checkpoint"}),
    **{f"score_{node}": ("evaluate", {"policy": f"{node}.checkpoint"}, {"report": "Report"})
       for node in ("base", "zero", "cold_start", "reasoning_rl", "sft", "all_scenario_rl", "distill_student", "student_rl")},
}
_CURVES = {"pretrain": 200, "sft": 120, "reward_model": 60, "rl": 300}  # stage -> steps


def make(root: Path, nodes: Mapping[str, tuple[str, dict[str, str], dict[str, str]]] = R1, steps: int | None = None) -> Path:
    """Write the run; its last node failed, all others are done. `steps` replaces every stage's number of steps."""
    root.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(root)
    graph = Graph({name: GraphNode(name, stage, "1", "tests", "", inputs, dict.fromkeys(inputs, "Checkpoint"), outputs, {"seed": 7, "stage": stage})
                   for name, (stage, inputs, outputs) in nodes.items()})
    files.write_json(folder.graph, {"recipe": "r1_tiny", "description": "The whole R1 recipe & <more>", "seed": 7, **graph.to_json()})
    files.write_text(folder.config, yaml.safe_dump({"recipe": "r1_tiny", "seed": 7, "overrides": ["recipe=r1_tiny", "seed=7"],
                                                    "stages": {name: dict(node.tree) for name, node in graph.nodes.items()}}))
    last = list(nodes)[-1]
    for at, node in enumerate(graph.nodes.values()):
        _stage(folder, node, random.Random(at), at, steps or _CURVES.get(node.stage, 0), failed=node.name == last and len(nodes) > 1)
    return root


def _digest(node: GraphNode, output: str) -> str:
    return files.combined({node.name: output})


def _stage(folder: RunFolder, node: GraphNode, draw: random.Random, at: int, steps: int, failed: bool) -> None:
    makers = {name: reference.partition(".") for name, reference in node.inputs.items()}
    basis = fingerprint.basis_of(node, {name: files.combined({source: output}) for name, (source, _, output) in makers.items()})
    here = folder.stage(node.name, fingerprint.fingerprint(basis))
    (here / "rollouts").mkdir(parents=True)
    for output in node.output_types:
        (here / "artifacts" / output).mkdir(parents=True)
    metrics = _metrics(node.stage, at)
    Manifest(node.name, node.stage, "tests", here.name, basis, "", {}, 2, state="failed" if failed else "done", epoch=1,
             started=f"2026-01-02T03:{at:02d}:00+00:00", ended=f"2026-01-02T03:{at:02d}:59+00:00", seconds=59.5, metrics={} if failed else metrics,
             artifacts={} if failed else {output: {"type": kind, "digest": _digest(node, output), "files": {}} for output, kind in node.output_types.items()},
             versions={"python": "3.11.7", "r1mega": "0.1.0"}, warnings=["the code of stage 'sft' has changed"] if node.name == "sft" else [],
             error="rank 1 died <killed>" if failed else None).save(here)
    files.point(folder.stage(node.name), here.name)
    if node.stage in _CURVES:
        _lines(here / "metrics.jsonl", (_step(node.stage, step, steps, draw) for step in range(1, steps + 1)))
    if node.stage in ("rl", "evaluate"):
        every = range(1, steps + 1, 20) if steps else [0]
        _lines(here / "rollouts" / "samples.jsonl", (_sample(step, k, draw, node.stage == "rl") for step in every for k in range(6)))
    if node.stage == "sample":
        drops = {"wrong_answer": 812, "mixed_language": 204, "repetition": 31, "near_duplicate": 9}
        (here / "artifacts" / "samples" / "drops.json").write_text(json.dumps(drops))


def _lines(path: Path, rows: Any) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _metrics(stage: str, at: int) -> dict[str, Any]:
    if stage not in ("rl", "evaluate"):
        trained = {"loss": 1.0 / (at + 1), "steps": 10, "accuracy_held_out": 0.875, **_flops(training=3e12 * (at + 1))}
        return trained if stage in _CURVES else {"samples": 800 - at, "correct": 1.0}
    point = min(0.97, 0.3 + 0.03 * at)
    found = {"problems": 500, "samples_per_problem": 4, "pass_at_1": point, "pass_at_1_ci95": [point - 0.02, point + 0.02], "pass_at_2": point + 0.01,
             "pass_at_4": min(1.0, point + 0.02), "cons_at_k": min(1.0, point + 0.05), "mean_length": 20.5 + at, "format_rate": 0.99,
             "language_consistency": 0.8 + 0.01 * at, "reward_terms": {"accuracy": point, "language_consistency": 0.8}}
    if stage == "rl":
        found |= {f"{name}_before": value for name, value in found.items()}
        found |= {"pass_at_1_before": point / 2, "pass_at_1_ci95_before": [point / 2 - 0.02, point / 2 + 0.02], "steps": 300}
        found |= _flops(training=9e12, inference=3.5e12 * at, generation=2.25e13, evaluation=4e12)
    else:
        found["by_domain"] = {"math": {"problems": 300, "pass_at_1": point}, "logic": {"problems": 200, "pass_at_1": point / 2}}
    return found


def _flops(**kinds: float) -> dict[str, float]:
    return {"model_flops": sum(value for kind, value in kinds.items() if kind != "evaluation"), **{f"flops_{kind}": value for kind, value in kinds.items()}}


def _step(stage: str, step: int, steps: int, draw: random.Random) -> dict[str, Any]:
    done = step / steps
    row: dict[str, Any] = {"step": step, "time": 1.7e9 + step, "loss": 3 * math.exp(-4 * done) + draw.gauss(0, 0.05), "grad_norm": 1 + abs(draw.gauss(0, 0.3)),
                           "lr": 1e-4, "tokens_per_second": 9000 + draw.gauss(0, 400), "train_seconds": 0.08,
                           "flops": 3e10, "flops_training": 3e10}
    if step == 5:
        row["grad_norm"] = "nan"
    if stage == "rl":
        accuracy, language = 0.3 + 0.6 * done + draw.gauss(0, 0.03), 0.8 + 0.19 * done
        row |= {"reward": accuracy + language + 0.9, "reward/accuracy": accuracy, "reward/format": 0.9, "reward/language_consistency": language,
                "accuracy": accuracy, "language_consistency": language, "length": 18 + 14 * done + draw.gauss(0, 1), "kl": 0.02 * done + draw.random() / 500,
                "entropy": 0.4 - 0.3 * done, "clip_fraction": 0.002 + draw.random() / 1000, "mismatch": 1e-7 * draw.random(), "generate_seconds": 0.05,
                "score_seconds": 0.001, "logprob_seconds": 0.02, "groups_zero_variance": float(draw.randrange(6)),
                "flops": 1.2e11 + 1e10 * done, "flops_inference": 1e10, "flops_generation": 8e10 + 1e10 * done}
    return row


def _sample(step: int, k: int, draw: random.Random, trained: bool) -> dict[str, Any]:
    a, b = (3, 4) if k == 0 else (draw.randrange(90), draw.randrange(90))
    right = draw.random() < 0.6
    text = HOSTILE if k == 1 and step <= 1 else f"<think>{a} and {b}. Wait, let me check: {a}+{b}.</think><answer>{a + b if right else a}</answer>"
    row = {"step": step, "id": f"{a}+{b}@{step * 8 + k}#{k}", "prompt": f"What is {a}+{b}?\n", "completion": text, "answer": str(a + b),
           "reward": 2.0 if right else 1.0, "parts": {"accuracy": float(right), "format": 1.0}, "length": 20 + k, "finish_reason": "stop"}
    return row | ({"advantage": None if k == 5 else draw.gauss(0, 1)} if trained else {})


if __name__ == "__main__":
    import sys

    print(make(Path(sys.argv[1])))
