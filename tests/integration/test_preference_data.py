"""Preferences made by a tiny checkpoint and the world's rule, through the command line: what is in the sets, a kill, another layout, a server as judge."""

from __future__ import annotations

import dataclasses
import json
import signal
import time

import pytest
from recipe_plugin import Runs
from scripted_server import Reply, Seen, chat, serve

from r1mega.data.chat import split_response
from r1mega.data.records import read_preferences, read_prompts
from r1mega.data.world.preferences import is_safe, preference_score

pytestmark = pytest.mark.timeout(300)
RECIPE = """
overrides: [model=tiny_deepseek_v3, tokenizer=sentencepiece, task=tiny_world, template=zero_tiny, precision=fp32, parallel=dp2, rollout.max_tokens=40,
            'task.families=[add]', task.general_share=0.95, task.malformed_rate=0.0]
kinds: {preference_data: [responses_per_prompt=4, pairs_per_prompt=6, prompts_per_unit=8, annotator=rule]}
stages:
  world: {stage: general_data, overrides: [parallel=single, samples=20, preferences=20]}
  base: {stage: pretrain, overrides: [steps=100, documents_per_step=96, tokenizer_documents=1000, optimizer.lr=3e-3]}
  helpful:
    stage: preference_data
    inputs: {policy: base.checkpoint, prompts: world.prompts}
    overrides: [max_prompts=64, max_rows=24, reward=world_preference]
  safety:
    stage: preference_data
    inputs: {policy: base.checkpoint, prompts: world.prompts}
    overrides: [kind=safety, judgements=1, max_prompts=24, reward=world_safety, annotator.metric=safety]
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """With an undisturbed run on two replicas."""
    runs = Runs(tmp_path_factory.mktemp("preferences"), "judged", RECIPE)
    for stage in ("world", "base"):
        runs.run("base", "--only", stage)
    runs.run("undisturbed")
    return runs


def digest(runs: Runs, name: str, stage: str) -> str:
    return (runs.artifact(name, stage, "preferences") / "content.sha256").read_text()


def test_pairs_say_what_the_rule_says_and_where_they_come_from(runs: Runs) -> None:
    pairs, judged = read_preferences(runs.artifact("undisturbed", "helpful", "preferences"))
    assert not judged
    assert len(pairs) >= 8, "the base is too weak for this test to say anything"
    asked = {prompt.id: prompt for prompt in read_prompts(runs.stage("undisturbed", "world") / "artifacts" / "prompts")}
    checkpoint = (runs.stage("undisturbed", "base") / "artifacts" / "checkpoint" / "content.sha256").read_text().strip()
    for pair in pairs:
        chosen, rejected = (preference_score(pair.prompt, split_response(text)[1]) for text in (pair.chosen, pair.rejected))
        assert chosen - rejected > 0.199, "judged by what a reader sees"
        assert (pair.margin, pair.judgements, pair.domain) == (2.0, 4, "helpful")
        origin = pair.provenance
        assert pair.prompt == asked[origin["prompt_id"]].question
        assert pair.language == asked[origin["prompt_id"]].language
        assert origin["checkpoint"] == checkpoint
        assert (origin["annotator"], origin["annotator_reward"], origin["annotator_reward_version"]) == ("rule 1", "world_preference", "1")
        assert sorted(origin["chosen_as"]) == ["A", "A", "B", "B"]
        assert origin["verdicts"] == [{"A": "A>>B", "B": "B>>A"}[side] for side in origin["chosen_as"]]


def test_counts_add_up_lengths_are_comparable_and_the_card_tells_both(runs: Runs) -> None:
    pairs, _ = read_preferences(runs.artifact("undisturbed", "helpful", "preferences"))
    metrics = runs.metrics("undisturbed", "helpful")
    drops = json.loads((runs.artifact("undisturbed", "helpful", "preferences") / "drops.json").read_text())["total"]
    assert metrics["pairs"] == len(pairs)
    assert metrics["generated"] == 4 * metrics["prompts"]
    settled = len(pairs) + drops.get("surplus", 0) + drops.get("pair_tips_the_lengths", 0)
    assert settled >= 24 or metrics["prompts"] == 64, "sampling ends when there are enough rows"
    assert settled - drops.get("surplus", 0) <= 24
    formed = settled + drops["margin_too_small"] + drops.get("pair_of_equal_responses", 0) + drops.get("pair_repeated", 0)
    unusable = sum(count for reason, count in drops.items() if reason.startswith("response_"))
    assert 6 * metrics["prompts"] - 3 * unusable <= formed <= 6 * metrics["prompts"], "four responses make six pairs"
    chosen, rejected = (sum(len(split_response(text)[1]) for text in side) for side in zip(*((pair.chosen, pair.rejected) for pair in pairs), strict=True))
    assert chosen / rejected == pytest.approx(metrics["length_ratio"])
    assert abs(metrics["length_ratio"] - 1) <= max(0.05, abs(metrics["length_ratio_before"] - 1) / 2)
    card = (runs.artifact("undisturbed", "helpful", "preferences") / "README.md").read_text()
    assert f"| helpful | {len(pairs)} | {metrics['prompts']} | {metrics['generated']} |" in card
    assert f"| margin_too_small | {drops['margin_too_small']} |" in card
    assert str(runs.folder) not in card


def test_single_responses_are_labelled_by_the_safety_rule(runs: Runs) -> None:
    pairs, judged = read_preferences(runs.artifact("undisturbed", "safety", "preferences"))
    assert not pairs
    assert len({row.safe for row in judged}) == 2
    assert all(row.safe == is_safe(row.prompt, row.response) and row.domain == "safety" for row in judged)
    assert len({(row.prompt, row.response) for row in judged}) == len(judged)
    metrics = runs.metrics("undisturbed", "safety")
    assert metrics["safe_share"] == pytest.approx(sum(row.safe for row in judged) / len(judged))
    dropped = sum(value for name, value in metrics.items() if name.startswith("drops/response"))
    assert len(judged) + dropped == metrics["generated"] == 24 * 4


def test_a_killed_run_continues_and_any_layout_makes_the_same_set(runs: Runs) -> None:
    """Killed when the first unit has been judged on two replicas, finished there; and once more from nothing on a single rank."""
    process = runs.start("killed")
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(runs.stage("killed", "helpful").glob("scratch/judgements/replica_*/unit_000000.json"))) == 2:
            break
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not runs.artifact("killed", "helpful", "preferences").exists()
    runs.run("killed")
    first = json.loads((runs.stage("killed", "helpful") / "metrics.jsonl").read_text().splitlines()[0])
    assert first["units_from_ledger"] == 2, "the second attempt answered the first unit's prompts again"
    assert digest(runs, "killed", "helpful") == digest(runs, "undisturbed", "helpful")
    assert runs.metrics("killed", "helpful") == runs.metrics("undisturbed", "helpful")
    runs.run("single", "stages.helpful.parallel=single", "--only", "helpful")
    assert digest(runs, "single", "helpful") == digest(runs, "undisturbed", "helpful")


def test_a_teacher_answers_and_a_model_judges_behind_a_server(runs: Runs) -> None:
    """Killed when some of the units are judged: those are not judged again, and what the server said decides."""
    said = ["many thanks, Ann", "now go away, Ann"]

    def answer(_: int, request: Seen) -> Reply:
        if not request.path.endswith("/chat/completions"):
            text = f"<think>x</think><answer>{said[request.body['seed'] % 2]}</answer>"
            return Reply({"choices": [{"index": 0, "text": text, "finish_reason": "stop"}]})
        question = request.body["messages"][1]["content"]
        first = question.index(said[0]) < question.index(said[1])
        verdict = {"own_answer": ".", "analysis": ".", "verdict": "A>>B" if first else "B>>A"}
        return dataclasses.replace(chat(json.dumps(verdict)), delay_s=0.02)

    with serve(answer) as server:
        overrides = ["stages.helpful.annotator=openai", "stages.helpful.annotator.model=judge", f"stages.helpful.annotator.server.base_url={server.url}",
                     "stages.helpful.rollout=openai", "stages.helpful.rollout.model=teacher", f"stages.helpful.rollout.server.base_url={server.url}",
                     "stages.helpful.max_prompts=32", "stages.helpful.max_rows=0", "stages.helpful.prompts_per_unit=4",
                     "stages.helpful.pairs_per_prompt=1", "--only", "helpful"]
        process = runs.start("served", *overrides)
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and process.poll() is None:
            if list(runs.stage("served", "helpful").glob("scratch/judgements/replica_*/unit_000002.json")):
                break
            time.sleep(0.005)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        asked = [json.dumps(request.body["messages"]) for request in server.seen if request.path.endswith("/chat/completions")]
        banked = [json.loads(path.read_text()) for path in runs.stage("served", "helpful").glob("scratch/judgements/replica_*/unit_*.json")]
        before = len(server.seen)
        runs.run("served", *overrides)
        again = [json.dumps(request.body["messages"]) for request in server.seen[before:] if request.path.endswith("/chat/completions")]
    pairs, _ = read_preferences(runs.artifact("served", "helpful", "preferences"))
    assert len(pairs) >= 16
    assert all(said[0] in pair.chosen and said[1] in pair.rejected for pair in pairs)
    assert {(pair.provenance["model"], pair.provenance["annotator"], pair.provenance["annotator_model"]) for pair in pairs} == {
        ("teacher", "openai 1", "judge")}
    assert not any("checkpoint" in pair.provenance for pair in pairs)
    assert sum(len(one["answers"]) for one in banked) >= 32
    assert len(set(asked) & set(again)) <= len(asked) - sum(len(one["answers"]) for one in banked), "banked judgements were asked for again"
