"""Decontamination finds planted 10-grams, and nothing else."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r1mega.data.decontaminate import Decontaminator, EvaluationFile, EvaluationText, file_texts, prompt_texts, question_texts, row_texts
from r1mega.data.records import JudgedResponse, PreferencePair, SampleRecord, write_prompts
from r1mega.errors import ConfigError, DataError
from r1mega.types import Prompt

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices(LETTERS, k=5)) for _ in range(count)]  # 12 million words: no accidental 10-gram


def test_planted_ten_grams_are_found_with_their_problem_and_nine_words_are_not() -> None:
    rng = random.Random(0)
    problems = {f"aime/{i}": words(rng, rng.randint(12, 40)) for i in range(50)}
    index = Decontaminator(EvaluationText(name, " ".join(text)) for name, text in problems.items())
    for trial in range(300):
        text, length = words(rng, 60), rng.choice([8, 9, 10, 11])
        name = rng.choice(list(problems))
        start = rng.randrange(len(problems[name]) - length + 1)
        at = rng.randrange(60)
        planted = [rng.choice([str.upper, str.title, str])(word) + rng.choice(["", ",", "."]) for word in problems[name][start: start + length]]
        found = index.find(" ".join([*text[:at], *planted, *text[at:]]))
        assert found == (name if length >= 10 else None), (trial, length)


def test_clean_texts_are_never_flagged() -> None:
    rng = random.Random(1)
    index = Decontaminator(EvaluationText(f"set/{i}", " ".join(words(rng, 30)), " ".join(words(rng, 30))) for i in range(50))
    assert all(index.find(" ".join(words(rng, 200))) is None for _ in range(100))


def test_solutions_count_and_short_solutions_do_not() -> None:
    solution = "we square both sides and then collect all terms in x on the left"
    index = Decontaminator([EvaluationText("math/1", "Solve it.", solution), EvaluationText("math/2", "What is it?", "42")])
    assert index.find("Now " + solution) == "math/1"
    assert index.find("42") is None


def test_chinese_characters_are_words() -> None:
    index = Decontaminator([EvaluationText("cmath/1", "小明有五个苹果，他又买了三个，一共有几个？")])
    assert index.find("题目：小明有五个苹果他又买了三个。") == "cmath/1"
    assert index.find("小明有五个苹果，小红没有。") is None


def test_short_texts_match_as_a_whole_and_signs_count() -> None:
    index = Decontaminator([EvaluationText("tiny/a", "3+5=")])
    assert index.find("3+5=") == index.find(" 3+5= ") == "tiny/a"
    assert index.find("3-5=") is None
    assert index.find("3+5=8") is None


def test_a_template_of_a_set_is_no_evidence_where_it_is_left_out() -> None:
    template = "which of the following four statements about the element {} is true for every pure sample of it that we can find in nature"
    texts = [EvaluationText(f"quiz/{i}", template.format(word)) for i, word in enumerate(words(random.Random(2), 20))]
    question = template.format("unheardof")
    assert Decontaminator(texts).find(question) == "quiz/0"
    assert Decontaminator(texts, common_share=0.5).find(question) is None
    assert Decontaminator(texts, common_share=0.5).find(texts[7].question) == "quiz/7"


def test_the_first_set_that_has_an_n_gram_is_named_every_time() -> None:
    text = " ".join(words(random.Random(3), 20))
    index = Decontaminator([*prompt_texts("one", [Prompt("x", text)]), *prompt_texts("two", [Prompt("y", text)])])
    assert index.find("nothing here", text) == "one/x"


def test_files_of_every_form(tmp_path: Path) -> None:
    texts = {name: " ".join(words(random.Random(name), 15)) for name in ("rows", "set", "columns")}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "p7", "problem": texts["rows"], "answer": "B"}) + "\n\n" + json.dumps({"problem": "7 + 8"}) + "\n")
    write_prompts(tmp_path / "set", [Prompt("q1", texts["set"])])
    files = {"rows": EvaluationFile(str(rows)), "set": EvaluationFile(str(tmp_path / "set"))}
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    parquet.write_table(pyarrow.table({"question": [texts["columns"]]}), tmp_path / "columns.parquet")
    files["columns"] = EvaluationFile(str(tmp_path / "columns.parquet"))
    index = Decontaminator(file_texts(files))
    assert [index.find(texts[name]) for name in texts] == ["rows/p7", "set/q1", "columns/1"]
    assert index.find("7 + 8") == "rows/3", "a row without an id is known by its line"
    assert index.find("B") is None


@pytest.mark.parametrize(("content", "fields", "words_"), [
    ("{broken\n", [], "a.jsonl:1: not valid JSON"), ("[1]\n", [], "a.jsonl:1: expected an object"),
    ('{"q": "x"}\n', ["question"], "a.jsonl:1: field 'question' is no text; fields: q")])
def test_bad_rows_are_named(tmp_path: Path, content: str, fields: list[str], words_: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=words_.replace("[", r"\[")):
        list(file_texts({"a": EvaluationFile(str(tmp_path / "a.jsonl"), text_fields=fields)}))


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"decontaminate_against\.aime\.path: '.*' does not exist"):
        list(file_texts({"aime": EvaluationFile(str(tmp_path / "none.jsonl"))}))
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ConfigError, match=r"neither a \.jsonl nor a \.parquet"):
        list(file_texts({"a": EvaluationFile(str(tmp_path / "a.csv"))}))


def turns(*contents: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(contents)]}


def test_a_problem_is_found_in_an_earlier_turn() -> None:
    long, short = " ".join(words(random.Random(5), 20)), "3+5="
    index = Decontaminator([*prompt_texts("one", [Prompt("x", long)]), *prompt_texts("two", [Prompt("y", short)])])
    for said, problem in ((long, "one/x"), (short, "two/y")):
        assert index.find(*question_texts(Prompt("a", "Are you sure?", metadata=turns(said, "8")))) == problem
        assert index.find(*question_texts(Prompt("b", "And now?", metadata=turns("Hello.", said)))) == problem, "a reply may state it too"
    assert index.find(*question_texts(Prompt("c", "And now?", metadata=turns("Hello.", "Good day.")))) is None
    assert question_texts(Prompt("d", "What?", metadata={"messages": "nothing of the kind"})) == ["What?"]


def test_a_conversation_is_measured_on_as_a_whole_and_solved_examples_are_not() -> None:
    """"Go on." after one conversation is not "Go on." after another; what every problem begins with is no problem."""
    talks = [Prompt("x", "Go on.", metadata=turns("Tell me of the sea.", "It is deep.")), Prompt("y", "Go on.", metadata=turns("And the sky?", "It is high."))]
    index = Decontaminator(prompt_texts("talks", talks))
    assert index.find(*question_texts(talks[1])) == "talks/y"
    assert index.find(*question_texts(Prompt("z", "And then?", metadata=turns("And the sky?", "It is high.", "Go on.", "And blue.")))) == "talks/y"
    assert index.find("Go on.") is None
    shown = turns("What is 1+1?", "2")
    index = Decontaminator(prompt_texts("shots", [Prompt("p", "What is 3+5?", metadata=shown), Prompt("q", "What is 4+9?", metadata=shown)]))
    assert index.find("What is 3+5?") == "shots/p"
    assert index.find("What is 1+1?") is None


def test_worked_solutions_are_evaluation_texts() -> None:
    solution = " ".join(words(random.Random(8), 30))
    index = Decontaminator(prompt_texts("math", [Prompt("x", "How many?", "42", metadata={"solution": solution})]))
    assert index.find(f"As is known, {solution[20:]}") == "math/x"
    assert index.find("42") is None
    assert index.sets == {"math": 1}


def test_all_that_is_learned_from_a_row_is_looked_at() -> None:
    planted = " ".join(words(random.Random(9), 12))
    index = Decontaminator(prompt_texts("quiz", [Prompt("x", planted)]))
    row = SampleRecord("s", "q", "r", "a")
    for kept in (row, PreferencePair("p", "q", "a", "b"), JudgedResponse("j", "q", "a", True), Prompt("t", "q")):
        assert index.find(*row_texts(kept)) is None
    rows = [replace(row, **{part: planted}) for part in ("prompt", "reasoning", "response")] + [replace(row, metadata=turns(planted, "x"))]
    rows += [PreferencePair("p", *(planted if place == part else "q" for place in range(3))) for part in range(3)]
    rows += [JudgedResponse("j", planted, "a", True), JudgedResponse("j", "q", planted, False), Prompt("t", planted)]
    assert [index.find(*row_texts(one)) for one in rows] == ["quiz/x"] * len(rows)
