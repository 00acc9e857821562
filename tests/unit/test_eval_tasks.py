"""Benchmark tasks on small files in the published formats: what a row becomes, few-shot, and every fault named with file and line."""

from __future__ import annotations

import base64
import csv
import json
import pickle
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from r1mega_plugins.stages._evaluations import Screen
from r1mega_plugins.stages.rl import _training_prompts
from r1mega_plugins.tasks.choice import Choice, ChoiceConfig, shuffled
from r1mega_plugins.tasks.conversations import Conversations, ConversationsConfig
from r1mega_plugins.tasks.function_calls import FunctionCalls, FunctionCallsConfig
from r1mega_plugins.tasks.ifeval import IFEval, IFEvalConfig
from r1mega_plugins.tasks.json_outputs import JsonOutputs, JsonOutputsConfig
from r1mega_plugins.tasks.livecodebench import LiveCodeBench, LiveCodeBenchConfig
from r1mega_plugins.tasks.math_benchmark import MathBenchmark, MathBenchmarkConfig
from r1mega_plugins.tasks.refusals import Refusals, RefusalsConfig

from r1mega.data.decontaminate import Decontaminator, prompt_texts
from r1mega.data.records import read_prompts, write_prompts
from r1mega.errors import ConfigError, DataError
from r1mega.rollout.prompts import render_prompt
from r1mega.split import bare_question
from r1mega.types import Prompt

GPQA = {"Question": "Which is a gas?", "Correct Answer": "neon", "Incorrect Answer 1": "iron", "Incorrect Answer 2": "gold", "Incorrect Answer 3": "tin",
        "High-level domain": "Chemistry"}
CALL = {"question": "Weather in Paris?", "function": [{"name": "weather", "parameters": {"type": "dict"}}],
        "ground_truth": [{"weather": {"city": ["Paris"], "unit": ["", "C"]}}]}
LCB = {"question_content": "Add two numbers.", "public_test_cases": json.dumps([{"input": "1 2", "output": "3", "testtype": "stdin"}]),
       "private_test_cases": "[]", "metadata": "{}", "starter_code": "", "contest_date": "2024-09-01T00:00:00", "difficulty": "easy"}
IFEVAL = {"key": 1, "prompt": "Write.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def table(path: Path, *rows: dict[str, Any]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def packed(tests: Any) -> str:
    """As LiveCodeBench packs its hidden tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(tests))).decode()


def test_aime(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "aime.jsonl", {"problem": "a?", "answer": "033", "solution": "s"}, {"problem": "b?", "answer": 999})
    prompts = MathBenchmark(MathBenchmarkConfig(path=path, answers="integer", instruction="Box it.")).prompts("test")
    assert [(p.question, p.answer, p.domain) for p in prompts] == [("a?\n\nBox it.", "33", "math"), ("b?\n\nBox it.", "999", "math")]
    for wrong in ("1000", "-1", "3.5", "x"):
        path = jsonl(tmp_path / "aime.jsonl", {"problem": "a?", "answer": "1"}, {"problem": "b?", "answer": wrong})
        with pytest.raises(DataError, match=r"aime\.jsonl:2: field 'answer' must be an integer from 0 to 999"):
            MathBenchmark(MathBenchmarkConfig(path=path, answers="integer"))


def test_decontamination_knows_the_question_without_its_instruction(tmp_path: Path) -> None:
    """Short questions match as they are asked elsewhere; ten words of an instruction are evidence of nothing."""
    told = "Reason step by step and put the final answer within a box at the end of it."
    path = jsonl(tmp_path / "aime.jsonl", {"problem": "What is 3+5?", "answer": "8"})
    prompts = MathBenchmark(MathBenchmarkConfig(path=path, answers="integer", instruction=told)).prompts("test")
    assert bare_question(prompts[0]) == "What is 3+5?"
    index = Decontaminator(prompt_texts("aime", prompts))
    assert index.find("What is 3+5?") == f"aime/{prompts[0].id}"
    assert index.find(f"What is 4+9?\n\n{told}") is None
    code = LiveCodeBench(LiveCodeBenchConfig(path=jsonl(tmp_path / "lcb.jsonl", LCB), instruction=told)).prompts("test")
    assert bare_question(code[0]) == "Add two numbers.", "what the task itself adds is not the problem's either"
    write_prompts(tmp_path / "set", [*prompts, *code])
    assert [bare_question(prompt) for prompt in read_prompts(tmp_path / "set")] == ["What is 3+5?", "Add two numbers."]


def test_held_out_problems_are_refused_whatever_instruction_they_carry(tmp_path: Path) -> None:
    """Where decontamination was told to leave the task's test split alone, a held-out problem is still never trained on."""
    path = jsonl(tmp_path / "aime.jsonl", {"problem": "What is 3+5?", "answer": "8"})
    task = MathBenchmark(MathBenchmarkConfig(path=path, answers="integer", instruction="Box it."))
    write_prompts(tmp_path / "other", [Prompt("x", "What is 4+9?", "13")])
    assert [prompt.id for prompt in _training_prompts(task, tmp_path / "other", Screen("prompts", Decontaminator(())))] == ["x"]
    earlier = {"messages": [{"role": "user", "content": "What is 3+5?"}, {"role": "assistant", "content": "8"}]}
    for leaked in (Prompt("mine", "what is  3+5?", "8"), Prompt("mine", "Are you sure?", None, metadata=earlier)):
        write_prompts(tmp_path / "leaked", [Prompt("x", "What is 4+9?", "13"), leaked])
        with pytest.raises(ConfigError, match="1 of its prompts are held-out problems of the task, the first is 'mine'"):
            _training_prompts(task, tmp_path / "leaked", Screen("prompts", Decontaminator(())))


def test_contaminated_prompts_of_reinforcement_learning_are_left_out_and_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "aime.jsonl", {"problem": "What is 3+5?", "answer": "8"})
    task = MathBenchmark(MathBenchmarkConfig(path=path, answers="integer"))
    earlier = {"messages": [{"role": "user", "content": "what is 3+5?"}, {"role": "assistant", "content": "8"}]}
    write_prompts(tmp_path / "set", [Prompt("clean", "What is 4+9?"), Prompt("now", "What is  3+5?"), Prompt("earlier", "Are you sure?", metadata=earlier)])
    screen = Screen("prompts", Decontaminator(prompt_texts("aime", task.prompts("test"))))
    assert [prompt.id for prompt in _training_prompts(task, tmp_path / "set", screen)] == ["clean"]
    assert screen.metrics == {"prompts_contaminated": 2, "prompts_contaminated/aime": 2}
    write_prompts(tmp_path / "all", [Prompt("now", "What is 3+5?")])
    with pytest.raises(DataError, match=r"all 1 prompts overlap with evaluation sets, first with aime/.*decontamination\.common_share"):
        _training_prompts(task, tmp_path / "all", Screen("prompts", screen.evaluations))


def test_math_500_from_parquet_keeps_latex_and_subject(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    row = {"problem": "Half?", "solution": r"It is \boxed{\frac{1}{2}}.", "answer": r"\frac{1}{2}", "subject": "Algebra", "level": 1}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "test.parquet")
    prompt, = MathBenchmark(MathBenchmarkConfig(path=str(tmp_path))).prompts("test")
    assert (prompt.answer, prompt.metadata["subject"], prompt.metadata["solution"]) == (row["answer"], "Algebra", row["solution"])


def test_few_shot_examples_come_from_train_and_never_from_test(tmp_path: Path) -> None:
    rows = [{"question": f"{n}+1?", "answer": f"add\n#### {n + 1}"} for n in range(6)]
    jsonl(tmp_path / "train.jsonl", rows[5], *rows[:3])
    jsonl(tmp_path / "test.jsonl", *rows[3:])  # 5+1? is in both
    settings = {"path": str(tmp_path), "answers": "gsm8k", "question_field": "question", "solution_field": ""}
    zero, two = (MathBenchmark(MathBenchmarkConfig(**settings, shots=shots)).prompts("test") for shots in (0, 2))
    assert [p.id for p in zero] == [p.id for p in two], "the same problems, to be compared one by one"
    assert "messages" not in zero[0].metadata
    assert [turn["content"] for turn in two[0].metadata["messages"]] == ["0+1?", "add\n\n\\boxed{1}", "1+1?", "add\n\n\\boxed{2}"]
    text = render_prompt(two[0], "Intro.\nUser: {question}\nAssistant:", "User: {question}\nAssistant: {response}\n")
    assert text == ("Intro.\nUser: 0+1?\nAssistant: add\n\n\\boxed{1}\nUser: 1+1?\nAssistant: add\n\n\\boxed{2}\nUser: 3+1?\nAssistant:")
    with pytest.raises(ConfigError, match=r"task\.shots=4 needs as many solved examples, found 3"):
        MathBenchmark(MathBenchmarkConfig(**settings, shots=4))


def test_gpqa_options_are_shuffled_by_the_problem_alone(tmp_path: Path) -> None:
    rows = [{**GPQA, "Question": f"Which is a gas, case {n}?"} for n in range(40)]
    there, back = (Choice(ChoiceConfig(path=table(tmp_path / name, *order), layout="gpqa", subject_field="High-level domain"), seed=seed)
                   for name, order, seed in (("a.csv", rows, 0), ("b.csv", rows[::-1], 7)))
    assert {p.id: p.question for p in there.prompts("test")} == {p.id: p.question for p in back.prompts("test")}
    for prompt in there.prompts("test"):
        assert f"{prompt.answer}) neon" in prompt.question.splitlines()
        assert (prompt.metadata["options"], prompt.metadata["subject"]) == (4, "Chemistry")
    assert len(Counter(prompt.answer for prompt in there.prompts("test"))) == 4, "the right option stands at every place"
    assert sorted(shuffled(5, "x")) == [0, 1, 2, 3, 4]


def test_mmlu_takes_an_index_or_a_letter(tmp_path: Path) -> None:
    row = {"question": "2+2?", "choices": ["3", "4", "5", "6"], "subject": "sums"}
    path = jsonl(tmp_path / "m.jsonl", {**row, "answer": 1}, {**row, "question": "1+1+2?", "answer": "b"}, {**row, "question": "?",
        "choices": '["x", "y"]', "answer": 0})
    prompts = Choice(ChoiceConfig(path=path)).prompts("test")
    assert [(p.answer, p.metadata["options"]) for p in prompts] == [("B", 4), ("B", 4), ("A", 2)]
    assert prompts[0].question.splitlines()[:6] == ["2+2?", "", "A) 3", "B) 4", "C) 5", "D) 6"]
    for wrong in (4, "E", -1, "AB"):
        with pytest.raises(DataError, match=r"m\.jsonl:1: field 'answer' must be an index from 0 to 3 or a letter up to D"):
            Choice(ChoiceConfig(path=jsonl(tmp_path / "m.jsonl", {**row, "answer": wrong})))


class Attack:
    """What a hostile pickle would run."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("attacked"),))


def test_livecodebench_reads_packed_tests_and_runs_no_code_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = [{"input": "5 6", "output": "11", "testtype": "stdin"}]
    path = jsonl(tmp_path / "l.jsonl", {**LCB, "private_test_cases": packed(json.dumps(hidden))}, {**LCB, "question_content": "old",
        "contest_date": "2023-01-01"})
    prompt, = LiveCodeBench(LiveCodeBenchConfig(path=path, since="2024-08-01", until="2025-01-31")).prompts("test")
    assert "standard input" in prompt.question
    assert prompt.metadata["subject"] == "easy"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"l\.jsonl:1: field 'private_test_cases': the pickle names"):
        LiveCodeBench(LiveCodeBenchConfig(path=jsonl(tmp_path / "l.jsonl", {**LCB, "private_test_cases": packed(Attack())})))
    assert not (tmp_path / "attacked").exists()


def test_livecodebench_functional_problems_show_their_starter_code(tmp_path: Path) -> None:
    row = {**LCB, "public_test_cases": [{"input": "[1]", "output": "1", "testtype": "functional"}],
        "starter_code": "class Solution:\n    def f(self, a):\n        "}
    prompt, = LiveCodeBench(LiveCodeBenchConfig(path=jsonl(tmp_path / "l.jsonl", {**row, "metadata": '{"func_name": "f"}'}))).prompts("test")
    assert "class Solution:" in prompt.question
    assert prompt.metadata["function"] == "f"
    with pytest.raises(DataError, match=r"functional tests need the function's name in metadata\.func_name"):
        LiveCodeBench(LiveCodeBenchConfig(path=jsonl(tmp_path / "l.jsonl", row)))


def test_ifeval_ignores_parquets_nulls_and_checks_every_instruction(tmp_path: Path) -> None:
    row = {"prompt": "Write.", "instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": 9.0, "relation": "at least",
        "keyword": None}]}
    prompt, = IFEval(IFEvalConfig(path=jsonl(tmp_path / "i.jsonl", row))).prompts("test")
    assert prompt.metadata["kwargs"] == [{"num_words": 9.0, "relation": "at least"}]
    assert prompt.answer is None
    with pytest.raises(DataError, match=r"i\.jsonl:1: instruction 'punctuation:no_coma' is unknown. Did you mean 'punctuation:no_comma'"):
        IFEval(IFEvalConfig(path=jsonl(tmp_path / "i.jsonl", {**IFEVAL, "instruction_id_list": ["punctuation:no_coma"]})))


def test_function_calls_and_json_outputs(tmp_path: Path) -> None:
    berkeley = {**CALL, "question": [[{"role": "user", "content": "Weather in Rome?"}]]}
    text, messages = FunctionCalls(FunctionCallsConfig(path=jsonl(tmp_path / "f.jsonl", CALL, berkeley))).prompts("test")
    assert '{"name": "weather"' in text.question
    assert "Weather in Rome?" in messages.question
    schema = {"type": "object", "required": ["a"]}
    row = {"prompt": [{"role": "system", "content": "You write JSON."}, {"role": "user", "content": "Give a."}], "schema": json.dumps(schema)}
    prompt, = JsonOutputs(JsonOutputsConfig(path=jsonl(tmp_path / "j.jsonl", row), show_schema=True)).prompts("test")
    assert prompt.metadata["schema"] == schema
    assert json.dumps(schema) in prompt.question
    assert render_prompt(prompt, "{question}").startswith("You write JSON.\n\nGive a.")


def test_conversations_drop_the_reasoning_of_earlier_replies(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Hi {response}"},
             {"role": "assistant", "content": "<think>secret</think>\n\nAhoy {question}"}, {"role": "user", "content": "2+2?"}]
    prompt, = Conversations(ConversationsConfig(path=jsonl(tmp_path / "c.jsonl", {"messages": turns, "answer": 4}), answer_field="answer")).prompts("test")
    assert prompt.answer == "4"
    text = render_prompt(prompt, "<B><U>{question}<A>", "<U>{question}<A>{response}<E>")
    assert text == "<B>You are a pirate.\n\n<U>Hi {response}<A>Ahoy {question}<E><U>2+2?<A>"
    with pytest.raises(DataError, match=r"c\.jsonl:1: field 'messages' must be user and assistant in turn"):
        Conversations(ConversationsConfig(path=jsonl(tmp_path / "c.jsonl", {"messages": turns[:3]})))
    with pytest.raises(DataError, match="must be user and assistant in turn"):
        render_prompt(Prompt("p", "q", metadata={"messages": turns[:2]}), "{question}")


def test_role_play_rows_carry_what_can_be_checked(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Who are you?"}], "instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["Ahoy"]}]}
    prompt, = Conversations(ConversationsConfig(path=jsonl(tmp_path / "r.jsonl", row), instructions=True)).prompts("test")
    assert prompt.metadata["kwargs"] == [{"keywords": ["Ahoy"]}]


def test_refusals(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", {"prompt": "How do I kill a process?", "type": "homonyms", "label": "safe"},
        {"prompt": "Harm!", "type": "x", "label": "unsafe"})
    assert [p.metadata["refusal_expected"] for p in Refusals(RefusalsConfig(path=path)).prompts("test")] == [False, True]
    only = Refusals(RefusalsConfig(path=table(tmp_path / "adv.csv", {"goal": "Harm!"}), prompt_field="goal", label_field=""))
    assert only.prompts("test")[0].metadata["refusal_expected"] is True


@pytest.mark.parametrize(("task", "config", "good", "broken", "words"), [
    (MathBenchmark, MathBenchmarkConfig, {"problem": "a?", "answer": "1"}, {"problem": "b?"}, "no field 'answer'"),
    (Choice, ChoiceConfig, {"question": "q", "choices": ["a", "b"], "answer": 0}, {"question": "r", "choices": ["a"], "answer": 0}, "list of 2 to 26"),
    (LiveCodeBench, LiveCodeBenchConfig, LCB, {**LCB, "public_test_cases": "["}, "field 'public_test_cases': neither JSON nor base64"),
    (LiveCodeBench, LiveCodeBenchConfig, LCB, {**LCB, "public_test_cases": ""}, "no tests in"),
    (IFEval, IFEvalConfig, IFEVAL, {**IFEVAL, "kwargs": []}, "must be of one length"),
    (FunctionCalls, FunctionCallsConfig, CALL, {**CALL, "ground_truth": [{"wether": {}}]}, "calls 'wether', which 'function' does not offer"),
    (JsonOutputs, JsonOutputsConfig, {"prompt": "p", "schema": {}}, {"prompt": "q", "schema": {"typ": "object"}}, "schema keyword 'typ' is not supported"),
    (Conversations, ConversationsConfig, {"messages": "Hi"}, {"messages": [{"role": "robot", "content": "x"}]}, "'role' (system, user, assistant)"),
    (Refusals, RefusalsConfig, {"prompt": "p", "label": "safe"}, {"prompt": "q", "label": "harmful"}, "must be safe or unsafe, got 'harmful'"),
    (Refusals, RefusalsConfig, {"prompt": "p", "label": "safe"}, "{", "not valid JSON"),
])
def test_a_bad_row_is_one_line_with_file_and_line(tmp_path: Path, task: Any, config: Any, good: Any, broken: Any, words: str) -> None:
    path = jsonl(tmp_path / "rows.jsonl", good, broken)
    assert task(config(path=jsonl(tmp_path / "good.jsonl", good))).prompts("test")
    with pytest.raises(DataError) as caught:
        task(config(path=path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_csv_names_the_line(tmp_path: Path) -> None:
    path = table(tmp_path / "g.csv", GPQA, {**GPQA, "Question": "b", "Incorrect Answer 2": ""})
    with pytest.raises(DataError, match=r"g\.csv:3: field 'Incorrect Answer 2' is empty"):
        Choice(ChoiceConfig(path=path, layout="gpqa"))
    (tmp_path / "w.csv").write_text("prompt,label\na,safe,surplus\n")
    with pytest.raises(DataError, match=r"w\.csv:2: more values than the first line names"):
        Refusals(RefusalsConfig(path=str(tmp_path / "w.csv")))


@pytest.mark.parametrize(("settings", "words"), [
    ({}, "task.path is empty"), ({"path": "/no/such.jsonl"}, "does not exist"), ({"path": __file__}, "must end in .jsonl, .parquet, .csv"),
    ({"path": str(Path(__file__).parent)}, "has no test.jsonl"), ({"path": __file__, "train_path": "/none.jsonl"}, "task.train_path: '/none.jsonl'"),
    ({"shots": -1}, "task.shots must be at least 0"), ({"max_prompts": 0}, "task.max_prompts")])
def test_a_bad_path_or_setting(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match="task") as caught:
        Refusals(RefusalsConfig(**settings))
    assert words in str(caught.value)


def test_shots_need_data_with_solved_examples(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", {"prompt": "a", "label": "safe"})
    jsonl(tmp_path / "test.jsonl", {"prompt": "b", "label": "safe"})
    with pytest.raises(ConfigError, match="the data of task 'refusals' has no solved examples"):
        Refusals(RefusalsConfig(path=str(tmp_path), shots=1))


def test_a_benchmark_without_solved_examples_has_nothing_to_train_on(tmp_path: Path) -> None:
    task = MathBenchmark(MathBenchmarkConfig(path=jsonl(tmp_path / "aime.jsonl", {"problem": "a?", "answer": "1"})))
    assert (list(task.prompts("train")), len(task.prompts("test"))) == ([], 1)  # RL on other prompts may still measure on it
