"""Rejection sampling on a tiny base, through the command line: what is in the set, any layout, and a run killed in the middle of a round.

The recipe is an outside plugin's, as anyone's would be; the plugin also has the evaluation set that the decontamination is to find.
"""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import time
from collections import Counter
from typing import Any

import pytest
from r1mega_plugins.rewards.accuracy import Accuracy, AccuracyConfig
from recipe_plugin import Runs
from scripted_server import Reply, Seen, chat, serve

from r1mega.config import TemplateConfig
from r1mega.data.chat import render_response
from r1mega.data.records import read_samples
from r1mega.types import RewardSample

pytestmark = pytest.mark.timeout(300)
RECIPE = """
overrides: [model=tiny_deepseek_v3, tokenizer=sentencepiece, task=arithmetic, template=zero_tiny, precision=fp32, parallel=dp2, rollout.max_tokens=32]
stages:
  base: {stage: pretrain, overrides: [steps=100, documents_per_step=96, tokenizer_documents=500, optimizer.lr=2e-3, task.wrong_rate=0.3]}
  data:
    stage: sample
    inputs: {policy: base.checkpoint}
    overrides: [max_prompts=24, samples_per_round=6, wanted_per_prompt=2, max_rounds=3, prompts_per_unit=4, rewriter=rules, dedup.max_similarity=0.95]
"""
CODE = """
import os
import signal
from r1mega.recipe import artifacts

if os.environ.get("KILL_BEFORE_RECORD"):  # the driver, when all ranks are done and nothing says so yet
    artifacts.record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
QUESTION = re.compile(r"(\d+)([-+*])(\d+)")
DEADLINE_S = 15


def evaluated(question: re.Match[str]) -> int:
    left, right = int(question[1]), int(question[3])
    return {"+": left + right, "-": left - right, "*": left * right}[question[2]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """With an undisturbed run on two replicas."""
    runs = Runs(tmp_path_factory.mktemp("sample"), "sampled", RECIPE, CODE)
    runs.run("base", "--only", "base")
    runs.run("undisturbed")
    return runs


def digest(runs: Runs, name: str) -> str:
    return (runs.artifact(name, "data", "samples") / "content.sha256").read_text()


def report(runs: Runs, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs.stage(name, "data") / "artifacts" / "report" / "report.json").read_text())
    return found


def test_every_row_is_correct_whole_and_of_known_origin(runs: Runs) -> None:
    rows = read_samples(runs.artifact("undisturbed", "data", "samples"))
    assert len(rows) >= 10, "the base is too weak for this test to say anything"
    reward = Accuracy(AccuracyConfig())
    for row in rows:
        text = render_response(TemplateConfig().response, row.reasoning, row.response)
        assert reward.score([RewardSample(row.prompt, text, row.answer)])[0].value == 1, row
        assert row.response.startswith("The answer is "), row
        assert row.reasoning.strip(), row
        assert row.id.startswith(f"{row.provenance['prompt_id']}@")
        assert row.provenance["rewards"]["accuracy"] == 1
        assert row.provenance["reward_versions"] == {"accuracy": Accuracy.version, "format": "1"}
        assert row.provenance["rewriter"] == "rules 1"
        assert "repetition" in row.provenance["filters"]
        assert row.provenance["checkpoint"] == (
            runs.folder / "undisturbed/stages/base/current/artifacts/checkpoint/content.sha256").read_text().strip()
    assert max(Counter(row.provenance["prompt_id"] for row in rows).values()) == 2
    places = [(int(row.id.partition("@")[2].partition("#")[0]), row.provenance["round"], row.provenance["sample"]) for row in rows]
    assert places == sorted(places), "rows must be in the order of prompts, rounds and samples"


def test_counts_add_up_and_the_card_shows_them(runs: Runs) -> None:
    metrics, rows = report(runs, "undisturbed")["metrics"], read_samples(runs.artifact("undisturbed", "data", "samples"))
    summary = runs.metrics("undisturbed", "data")
    assert {name: value for name, value in summary.items() if "flops" not in name} == metrics
    assert summary["model_flops"] == summary["flops_generation"] > 0
    assert metrics["samples"] == len(rows)
    assert metrics["prompts"] == 24
    assert metrics["prompts_without_sample"] == 24 - len({row.provenance["prompt_id"] for row in rows})
    assert 1 <= metrics["mean_rounds"] <= 3
    drops = json.loads((runs.artifact("undisturbed", "data", "samples") / "drops.json").read_text())
    generated = round(metrics["mean_rounds"] * 24) * 6
    assert metrics["samples"] + sum(drops["total"].values()) == generated, "every completion is kept or counted as dropped"
    assert metrics["drops/incorrect"] == drops["domains"]["math"]["incorrect"] > 0
    assert round(metrics["correct_rate"] * generated) == generated - metrics["drops/incorrect"]
    card = (runs.artifact("undisturbed", "data", "samples") / "README.md").read_text()
    assert f"| math | {len(rows)} | 24 |" in card
    assert str(runs.folder) not in card


def test_parquet_holds_the_same_rows(runs: Runs) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    rows = parquet.read_table(runs.artifact("undisturbed", "data", "samples") / "samples.parquet").to_pylist()
    assert [(row["id"], row["response"], json.loads(row["provenance"])) for row in rows] == [
        (row.id, row.response, row.provenance) for row in read_samples(runs.artifact("undisturbed", "data", "samples"))]


def test_a_killed_run_continues_and_any_layout_makes_the_same_set(runs: Runs) -> None:
    """Killed in the second round on two replicas, finished there; and once more from nothing on a single rank."""
    process = runs.start("killed")
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        if list(runs.stage("killed", "data").glob("scratch/ledger/replica_*/step_00000001/unit_*.bank")):
            break
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (runs.artifact("killed", "data", "samples") / "content.sha256").exists()
    runs.run("killed")
    first = json.loads((runs.stage("killed", "data") / "metrics.jsonl").read_text().splitlines()[0])
    assert first["units_from_ledger"] == first["units"] == 3, "the second attempt made the first round again"
    assert digest(runs, "killed") == digest(runs, "undisturbed")
    assert report(runs, "killed") == report(runs, "undisturbed")
    assert runs.metrics("killed", "data") == runs.metrics("undisturbed", "data"), "what the ledger holds was computed too"
    assert not (runs.stage("killed", "data") / "scratch").exists(), "the ledger is of no use once the set is recorded"
    runs.run("single", "stages.data.parallel=single")
    assert digest(runs, "single") == digest(runs, "undisturbed")
    assert runs.metrics("single", "data") == runs.metrics("undisturbed", "data"), "compute does not depend on the layout"


def test_nothing_is_made_again_when_the_driver_dies_before_it_records_the_set(runs: Runs) -> None:
    runs.environment["KILL_BEFORE_RECORD"] = "1"
    try:
        runs.run("unrecorded", code=-signal.SIGKILL)
    finally:
        del runs.environment["KILL_BEFORE_RECORD"]
    stage = runs.stage("unrecorded", "data")
    assert json.loads((stage / "manifest.json").read_text())["state"] == "running"
    assert digest(runs, "unrecorded") == digest(runs, "undisturbed"), "the ranks had not written the set when the driver was killed"
    assert list((stage / "scratch").rglob("*.bank")), "the ledger went before the driver had recorded the set"
    runs.run("unrecorded")
    rounds = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert rounds
    assert all(line["units_from_ledger"] == line["units"] for line in rounds)
    assert report(runs, "unrecorded") == report(runs, "undisturbed")
    assert digest(runs, "unrecorded") == digest(runs, "undisturbed")
    assert not (stage / "scratch").exists()


def test_prompts_of_an_evaluation_set_are_left_out_and_the_problem_is_named(runs: Runs) -> None:
    first = read_samples(runs.artifact("undisturbed", "data", "samples"))[0]
    evaluation = runs.folder / "held_out.jsonl"
    evaluation.write_text(json.dumps({"id": "p1", "question": first.prompt}) + "\n")
    runs.run("clean", f"+stages.data.decontaminate_against.held={{path: {evaluation}}}", "stages.data.max_rounds=1", "stages.data.rewriter=none")
    found = report(runs, "clean")
    assert found["contaminated"] == {"held/p1": 1}
    assert found["metrics"]["drops/prompt_contaminated"] == 1
    rows = read_samples(runs.artifact("clean", "data", "samples"))
    assert first.prompt not in {row.prompt for row in rows}
    assert {row.provenance["rewriter"] for row in rows} == {None}
    assert not any("The answer" in row.response for row in rows)


def test_a_teacher_is_named_and_a_slow_editor_outlasts_every_deadline(runs: Runs) -> None:
    """Model and editor are behind a server; the editor takes longer for the second replica's samples than a collective may last."""
    def answer(_: int, request: Seen) -> Reply:
        if request.body["model"] == "editor":
            material = request.body["messages"][-1]["content"]
            question = QUESTION.search(material)
            assert question, material
            return dataclasses.replace(
                chat(f"<reasoning>\nWe compute {question[0]} with care.\n</reasoning>\n<summary>\nThe sum is \\boxed{{{evaluated(question)}}}.\n</summary>"),
                delay_s=DEADLINE_S + 3 if slow(question[0]) else 0)
        question = QUESTION.search(request.body["prompt"])
        assert question, request.body
        said = render_response(TemplateConfig().response, f"{question[0]}{evaluated(question)}", str(evaluated(question)))
        return Reply({"choices": [{"index": 0, "finish_reason": "stop", "text": said}]})

    rows = read_samples(runs.artifact("undisturbed", "data", "samples"))
    asked = {row.prompt: int(row.id.partition("@")[2].partition("#")[0]) for row in rows}

    def slow(question: str) -> bool:
        return any(place % 2 for prompt, place in asked.items() if question in prompt)

    with serve(answer) as server:
        overrides = (f"stages.data.cluster.timeout_minutes={DEADLINE_S / 60}", "stages.data.max_rounds=1", "stages.data.rollout=openai",
                     "stages.data.rollout.model=teacher-7b", f"stages.data.rollout.server.base_url={server.url}", "stages.data.rewriter=openai",
                     "stages.data.rewriter.model=editor", f"stages.data.rewriter.server.base_url={server.url}")
        runs.run("taught", *overrides)
        waits = [request for request in server.seen if request.body["model"] == "editor"]
    assert any(slow(QUESTION.search(request.body["messages"][-1]["content"])[0]) for request in waits), "nobody had to wait"  # type: ignore[index]
    taught = read_samples(runs.artifact("taught", "data", "samples"))
    assert len(taught) >= 10
    for row in taught:
        assert row.provenance["model"] == "teacher-7b"
        assert "checkpoint" not in row.provenance, "the stage's own checkpoint said none of it"
        assert row.provenance["rewriter"] == "openai 1"
        assert row.reasoning.endswith("with care.")
    card = (runs.artifact("taught", "data", "samples") / "README.md").read_text()
    assert "| model | teacher-7b |" in card
    assert "| checkpoint |" not in card
    assert server.url not in card
