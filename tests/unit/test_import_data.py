"""The stage import_data: a user's JSON Lines as artifacts, checked, and cut to numbers per domain."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from r1mega_plugins.stages.import_data import ImportData, ImportDataConfig
from r1mega_plugins.tasks.math_benchmark import MathBenchmarkConfig

from r1mega.config import PluginChoice
from r1mega.data.decontaminate import EvaluationTask
from r1mega.data.records import JudgedResponse, PreferencePair, SampleRecord, read_preferences, read_prompts, read_samples, write_preferences, write_samples
from r1mega.errors import ConfigError, DataError
from r1mega.recipe.context import StageContext
from r1mega.types import Prompt

SAMPLES = [SampleRecord(f"s{i}", f"question {i}", "why", f"answer {i}", domain="math" if i % 3 else "general", metadata={"n": i}) for i in range(60)]


def run(folder: Path, **settings: Any) -> tuple[dict[str, Any], StageContext]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "epoch").write_text("1")
    context = StageContext(name="data", config=None, run_dir=folder, dir=folder, inputs={}, rank=0, world_size=1, local_rank=0, epoch=1)
    config = ImportDataConfig(**{name: str(value) if isinstance(value, Path) else value for name, value in settings.items()})
    return dict(ImportData(config).run(context)), context


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_set_arrives(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    write_samples(samples, SAMPLES)
    pairs, judged = [PreferencePair("p", "q", "good", "bad")], [JudgedResponse("j", "q", "no", True), JudgedResponse("k", "q", "yes", False)]
    write_preferences(tmp_path / "preferences", pairs, judged)
    tests = {"public_test_cases": "[]", "function": "f"}
    prompts = lines(tmp_path / "p.jsonl", [{"id": "a", "question": "write f", "domain": "code", "metadata": tests},
                                           {"id": "b", "question": "1+1", "answer": "2"}])
    metrics, context = run(tmp_path / "out", samples_path=samples, prompts_path=prompts, pairs_path=tmp_path / "preferences",
                           judged_path=tmp_path / "preferences")
    assert read_samples(context.output("samples")) == SAMPLES
    assert (context.output("samples") / "content.sha256").read_bytes() == (samples / "content.sha256").read_bytes()
    assert read_prompts(context.output("prompts")) == [Prompt("a", "write f", None, "code", metadata=tests), Prompt("b", "1+1", "2")]
    assert read_preferences(context.output("preferences")) == (pairs, judged)
    assert metrics == {"samples": 60, "samples_read": 60, "samples_general": 20, "samples_math": 40, "prompts": 2, "prompts_read": 2, "prompts_code": 1,
                       "prompts_math": 1, "pairs": 1, "pairs_read": 1, "pairs_helpful": 1, "judged": 2, "judged_read": 2, "judged_safety": 2}


def test_what_is_not_given_is_empty(tmp_path: Path) -> None:
    write_samples(tmp_path / "s", SAMPLES)
    metrics, context = run(tmp_path / "out", samples_path=tmp_path / "s")
    assert set(metrics) == {"samples", "samples_read", "samples_general", "samples_math"}
    assert read_prompts(context.output("prompts")) == []
    assert read_preferences(context.output("preferences")) == ([], [])


def taken(folder: Path, **settings: Any) -> list[str]:
    return [row.id for row in read_samples(run(folder, **settings)[1].output("samples"))]


def test_counts_take_a_fixed_part_of_a_domain(tmp_path: Path) -> None:
    write_samples(tmp_path / "s", SAMPLES)
    shuffled = random.Random(1).sample(SAMPLES, len(SAMPLES))
    write_samples(tmp_path / "t", shuffled)
    few = taken(tmp_path / "a", samples_path=tmp_path / "s", counts={"math": 10})
    assert len([row for row in few if int(row[1:]) % 3]) == 10
    assert len(few) == 30  # the other domain is whole
    assert few == sorted(few, key=lambda row: int(row[1:]))  # in the order of the file
    assert set(few) == set(taken(tmp_path / "b", samples_path=tmp_path / "t", counts={"math": 10}))  # whatever that order is
    assert set(few) < set(taken(tmp_path / "c", samples_path=tmp_path / "s", counts={"math": 25}))
    assert set(few) != set(taken(tmp_path / "d", samples_path=tmp_path / "s", counts={"math": 10}, choice_seed=1))
    assert len(taken(tmp_path / "e", samples_path=tmp_path / "s", counts={"math": 0})) == 20
    assert len(taken(tmp_path / "f", samples_path=tmp_path / "s", counts={"math": 4000})) == 60


def test_several_files_of_a_folder_are_one_set(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, ids in (("b", "34"), ("a", "12")):
        lines(tmp_path / "in" / f"{name}.jsonl", [{"id": i, "prompt": "q", "reasoning": "", "response": "r"} for i in ids])
    assert taken(tmp_path / "out", samples_path=tmp_path / "in") == ["1", "2", "3", "4"]
    lines(tmp_path / "in" / "c.jsonl", [{"id": "2", "prompt": "q", "reasoning": "", "response": "r"}])
    with pytest.raises(DataError, match=r"c\.jsonl:1: id '2' is also at .*a\.jsonl:2"):
        run(tmp_path / "again", samples_path=tmp_path / "in")


@pytest.mark.parametrize(("text", "message"), [
    ('{"id": "1", "prompt": "q", "reasoning": "", "response": "r"}\n{"id": "2", "prompt": "q"', r"x\.jsonl:2: not valid JSON"),
    ('{"id": "1", "prompt": "q", "reasoning": ""}', r"x\.jsonl:1: field 'response' is missing"),
    ('{"id": "1", "prompt": "q", "reasoning": "", "respons": "r"}', r"x\.jsonl:1: field 'response' is missing"),
    ('{"id": "1", "prompt": 3, "reasoning": "", "response": "r"}', r"x\.jsonl:1: field 'prompt' must be text"),
    ("\n", r"samples_path: .*x\.jsonl has no rows"),
])
def test_a_malformed_line_is_named_and_nothing_is_published(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        run(tmp_path / "out", samples_path=tmp_path / "x.jsonl")
    assert not (tmp_path / "out" / "artifacts" / "samples").exists()


def test_counts_of_nothing_are_refused(tmp_path: Path) -> None:
    write_samples(tmp_path / "s", SAMPLES)
    with pytest.raises(DataError, match=r"counts\.maths=5: no row is of this domain\. Did you mean 'math'\? Domains: general, math"):
        run(tmp_path / "out", samples_path=tmp_path / "s", counts={"maths": 5})
    with pytest.raises(ConfigError, match=r"prompt_counts\.math=-1"):
        ImportDataConfig(prompt_counts={"math": -1})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"folder .*empty has no samples\.jsonl"):
        run(tmp_path / "out", samples_path=tmp_path / "empty")


QUESTION = "How many apples are left when nine of the twenty three apples in the basket were eaten?"


def evaluations(folder: Path) -> dict[str, EvaluationTask]:
    """An evaluation task that asks `QUESTION`, and one whose file the user has not named."""
    path = lines(folder / "quiz.jsonl", [{"problem": QUESTION, "answer": "14"}])
    chosen = {name: PluginChoice("math_benchmark", MathBenchmarkConfig(path=where)) for name, where in (("quiz", str(path)), ("aime", ""))}
    return {name: EvaluationTask(choice) for name, choice in chosen.items()}  # type: ignore[arg-type]


def test_contaminated_rows_of_every_kind_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    earlier = {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "14"}]}
    planted = SampleRecord("said", "q", f"I know this one: {QUESTION}", "14", domain="general")
    write_samples(tmp_path / "s", [*SAMPLES, planted, SampleRecord("earlier", "Are you sure?", "", "Yes.", domain="math", metadata=earlier)])
    prompts = lines(tmp_path / "p.jsonl", [{"id": "a", "question": "1+1", "answer": "2"}, {"id": "b", "question": QUESTION.upper(), "answer": "14"}])
    pairs = [PreferencePair("p", "q", "good", "bad"), PreferencePair("asked", QUESTION, "14", "13"), PreferencePair("worse", "q", "good", QUESTION)]
    write_preferences(tmp_path / "f", pairs, [JudgedResponse("j", "q", "no", True), JudgedResponse("k", QUESTION, "yes", False)])
    metrics, context = run(tmp_path / "out", samples_path=tmp_path / "s", prompts_path=prompts, pairs_path=tmp_path / "f", judged_path=tmp_path / "f",
                           evaluation_tasks=evaluations(tmp_path))
    assert read_samples(context.output("samples")) == SAMPLES
    assert [prompt.id for prompt in read_prompts(context.output("prompts"))] == ["a"]
    kept_pairs, kept_judged = read_preferences(context.output("preferences"))
    assert ([pair.id for pair in kept_pairs], [row.id for row in kept_judged]) == (["p"], ["j"])
    counts = {"samples": 2, "prompts": 1, "pairs": 2, "judged": 1}
    assert {name: metrics[f"{name}_contaminated/quiz"] for name in counts} == {name: metrics[f"{name}_contaminated"] for name in counts} == counts
    assert (metrics["samples"], metrics["samples_read"]) == (60, 62)
    drops = json.loads((context.output("samples") / "drops.json").read_text())
    assert drops == {"total": {"contaminated": 2}, "domains": {"general": {"contaminated": 1}, "math": {"contaminated": 1}}}
    card = (context.output("preferences") / "README.md").read_text()
    assert "- decontaminated against: quiz (1 problems)" in card
    assert "- not compared, since its data are not known: aime (task.path is not set)" in card
    assert "- 2 pairs dropped for quiz" in card
    assert "nothing is compared with evaluation set 'aime': evaluation_tasks.aime has no task.path" in caplog.text
    assert str(tmp_path) not in card


def test_wanted_numbers_are_taken_of_what_is_clean(tmp_path: Path) -> None:
    rows = [{"id": f"r{number}", "question": QUESTION if number % 2 else f"{number}+1"} for number in range(20)]
    metrics, context = run(tmp_path / "out", prompts_path=lines(tmp_path / "p.jsonl", rows), prompt_counts={"math": 10},
                           evaluation_tasks=evaluations(tmp_path))
    assert [prompt.id for prompt in read_prompts(context.output("prompts"))] == [f"r{number}" for number in range(0, 20, 2)]
    assert metrics["prompts_contaminated"] == 10
    with pytest.raises(DataError, match=r"all 10 prompts overlap with evaluation sets, first with quiz/"):
        run(tmp_path / "none", prompts_path=lines(tmp_path / "q.jsonl", rows[1::2]), evaluation_tasks=evaluations(tmp_path))
