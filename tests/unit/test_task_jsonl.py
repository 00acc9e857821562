"""JSONL and Parquet tasks: field mapping, GSM8K answers, given splits, and malformed files named by line."""

import json
import logging
import os
import re
from pathlib import Path

import pytest
from r1mega_plugins.tasks.jsonl import Jsonl, JsonlConfig

from r1mega.errors import ConfigError, DataError, UserError

REPOSITORY = Path(__file__).parents[2]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def gsm8k_row(number: int) -> dict[str, str]:
    return {"question": f"Ada has {number} apples and buys 1200 more. How many now?",
            "answer": f"She has {number}+1200 = <<{number}+1200={number + 1200}>>{number + 1200}.\n#### {number + 1200:,}"}


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    """The real data where they are, else a small folder of the same format."""
    for folder in (os.environ.get("R1MEGA_GSM8K"), REPOSITORY.parent / "shared" / "data" / "gsm8k"):
        if folder and (Path(folder) / "test.jsonl").is_file():
            return Path(folder)
    write(tmp_path / "train.jsonl", [gsm8k_row(number) for number in range(40)])
    write(tmp_path / "test.jsonl", [gsm8k_row(number) for number in range(100, 110)])
    return tmp_path


def test_gsm8k_keeps_its_splits_and_takes_the_number_after_the_mark(gsm8k):
    task = Jsonl(JsonlConfig(path=str(gsm8k), answer_format="gsm8k"))
    for split in ("train", "test"):
        raw = [json.loads(line) for line in (gsm8k / f"{split}.jsonl").read_text().splitlines()]
        assert [p.question for p in task.prompts(split)] == [row["question"] for row in raw]
        assert [p.answer for p in task.prompts(split)] == [row["answer"].split("#### ")[-1].replace(",", "") for row in raw]
        assert all(re.fullmatch(r"-?\d+(\.\d+)?", prompt.answer) for prompt in task.prompts(split))
    assert not {p.id for p in task.prompts("train")} & {p.id for p in task.prompts("test")}


def test_gsm8k_documents_are_training_solutions_without_calculator_marks(gsm8k):
    task = Jsonl(JsonlConfig(path=str(gsm8k), answer_format="gsm8k"))
    answers = {prompt.question: prompt.answer for prompt in task.prompts("train")}
    documents = list(task.documents(len(answers), seed=1))
    assert {question for question, _ in documents} == set(answers), "one pass shows every training problem once"
    for question, response in documents:
        assert re.fullmatch(rf"<think>.+</think><answer>{re.escape(answers[question])}</answer>", response, re.DOTALL)
        assert "<<" not in response
        assert "####" not in response
    assert documents != list(task.documents(len(answers), seed=2))
    assert documents == list(task.documents(len(answers), seed=1))


@pytest.mark.parametrize(("written", "read"), [("1,234,567", "1234567"), ("-1,000", "-1000"), ("$5", "$5"), ("1,2", "1,2"), ("3.5", "3.5")])
def test_gsm8k_thousands_commas(tmp_path, written, read):
    file = write(tmp_path / "a.jsonl", [{"question": "q", "answer": f"so #### it is\n#### {written}"}])
    prompt, = Jsonl(JsonlConfig(path=str(file), answer_format="gsm8k", test_fraction=0.0)).prompts("train")
    assert prompt.answer == read
    assert prompt.metadata == {"solution": "so #### it is"}


def test_fields_are_mapped_and_numbers_are_text(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"q": "Wie viel ist 1+1?", "a": 2, "topic": "sums", "lang": "de", "how": "count"}])
    mapping = {"question_field": "q", "answer_field": "a", "domain_field": "topic", "language_field": "lang", "solution_field": "how"}
    task = Jsonl(JsonlConfig(path=str(file), test_fraction=0.0, **mapping))
    prompt, = task.prompts("train")
    assert (prompt.question, prompt.answer, prompt.domain, prompt.language) == ("Wie viel ist 1+1?", "2", "sums", "de")
    assert list(task.documents(1, 0)) == [("Wie viel ist 1+1?", "<think>count</think><answer>2</answer>")]


def test_rows_without_answers_become_plain_documents(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"question": "Tell me a story."}])
    task = Jsonl(JsonlConfig(path=str(file), answer_field="", test_fraction=0.0))
    assert task.prompts("train")[0].answer is None
    assert list(task.documents(2, 0)) == [(None, "Tell me a story.")] * 2


def test_train_problems_that_are_in_the_given_test_set_are_removed_and_reported(tmp_path, caplog):
    write(tmp_path / "train.jsonl", [{"question": text, "answer": "1"} for text in ("How  many?", "Why?", "WHY?")])
    write(tmp_path / "test.jsonl", [{"question": "how many?", "answer": "1"}])
    with caplog.at_level(logging.WARNING):
        task = Jsonl(JsonlConfig(path=str(tmp_path)))
    assert [prompt.question for prompt in task.prompts("train")] == ["Why?"]
    assert "removed 1 training problems" in caplog.text
    assert "dropped 1 rows" in caplog.text


def test_folder_without_splits_is_one_pool_split_by_identity(tmp_path):
    rows = [{"question": f"question {i}", "answer": i} for i in range(200)]
    write(tmp_path / "a.jsonl", rows[:100])
    write(tmp_path / "b.jsonl", rows[100:])
    (tmp_path / "README.md").write_text("not data")
    task = Jsonl(JsonlConfig(path=str(tmp_path), test_fraction=0.3))
    assert len(task.prompts("train")) + len(task.prompts("test")) == 200
    assert 35 < len(task.prompts("test")) < 85
    alone = Jsonl(JsonlConfig(path=str(tmp_path / "a.jsonl"), test_fraction=0.3))
    assert {p.id for p in alone.prompts("test")} < {p.id for p in task.prompts("test")}


def test_named_files_and_prompt_limit(tmp_path):
    write(tmp_path / "mine.jsonl", [{"question": f"q{i}", "answer": i} for i in range(5)])
    write(tmp_path / "held.jsonl", [{"question": f"h{i}", "answer": i} for i in range(5)])
    task = Jsonl(JsonlConfig(path=str(tmp_path), train_file="mine.jsonl", test_file="held.jsonl", max_prompts=2))
    assert [p.question for p in task.prompts("train")] == ["q0", "q1"]
    assert [p.question for p in task.prompts("test")] == ["h0", "h1"]
    assert {question for question, _ in task.documents(9, 0)} == {"q0", "q1"}


def test_parquet_reads_like_jsonl(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [gsm8k_row(number) for number in range(30)]
    (tmp_path / "parquet").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "parquet" / "x.parquet", row_group_size=7)
    lines = write(tmp_path / "x.jsonl", rows)
    settings = {"answer_format": "gsm8k", "test_fraction": 0.3}
    one, other = Jsonl(JsonlConfig(path=str(tmp_path / "parquet"), **settings)), Jsonl(JsonlConfig(path=str(lines), **settings))
    assert one.split == other.split
    broken = [{"question": "q", "answer": "no mark"}]
    parquet.write_table(pyarrow.Table.from_pylist([*rows, *broken]), tmp_path / "broken.parquet")
    with pytest.raises(DataError, match=r"broken\.parquet:31: field 'answer' has no '#### <answer>'"):
        Jsonl(JsonlConfig(path=str(tmp_path / "broken.parquet"), **settings))
    (tmp_path / "no.parquet").write_text("not parquet at all")
    with pytest.raises(DataError, match=r"no\.parquet: not a readable Parquet file"):
        Jsonl(JsonlConfig(path=str(tmp_path / "no.parquet")))


def test_first_five_bad_lines_are_in_one_message(tmp_path):
    good = {"question": "q", "answer": "1"}
    bad = ['{"question": "q", ', "[1, 2]", {"qestion": "q", "answer": "1"}, {"question": " ", "answer": "1"}, {"question": "q", "answer": None},
           {"question": "q", "answer": [1]}, "nonsense"]
    file = write(tmp_path / "a.jsonl", [good, *bad, "", good])
    with pytest.raises(DataError) as caught:
        Jsonl(JsonlConfig(path=str(file)))
    lines = str(caught.value).split("; ")
    assert [line.removeprefix(f"{file}:").split(":")[0] for line in lines[:5]] == ["2", "3", "4", "5", "6"]
    reasons = ("not valid JSON", "expected a JSON object, got list", "no field 'question'", "is empty", "got null")
    assert all(reason in line for reason, line in zip(reasons, lines[:5], strict=True)), lines
    assert "Did you mean 'qestion'?" in lines[2]
    assert lines[5:] == ["and 2 more malformed rows"]


@pytest.mark.parametrize(("line", "reason"), [
    (b'{"question": "\xff", "answer": "1"}', "not UTF-8 at byte 15"),
    (b'{"question": "\\ud800", "answer": "1"}', "lone surrogate at character 0"),
    (b'{"question": "q", "answer": NaN}', "must be text or a number, got float"),
    (b'{"question": "q", "answer": true}', "must be text or a number, got bool"),
    (b"[" * 100_000, "not readable JSON"),
])
def test_odd_bytes_are_named(tmp_path, line, reason):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"question": "fine", "answer": "1"}\n' + line + b"\n")
    with pytest.raises(DataError, match=f"^{re.escape(str(file))}:2: .*{reason}"):
        Jsonl(JsonlConfig(path=str(file)))


def test_byte_order_mark_and_line_separators_inside_strings_are_harmless(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + '{"question": "one\u2028two\u0085three", "answer": "1"}\r\n'.encode())
    prompt, = Jsonl(JsonlConfig(path=str(file), test_fraction=0.0)).prompts("train")
    assert prompt.question == "one\u2028two\u0085three"


def test_wrong_answer_format_says_which_setting_to_change(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"question": "q", "answer": "42"}])
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*set task\.answer_format=plain"):
        Jsonl(JsonlConfig(path=str(file), answer_format="gsm8k"))


def test_paths_that_cannot_be_are_config_errors(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "only.jsonl", [{"question": "q", "answer": "1"}])
    for settings, error, message in (
        ({}, ConfigError, r"task\.path is empty: set it to a \.jsonl"),
        ({"path": str(tmp_path / "no.jsonl")}, ConfigError, r"task\.path: .*no\.jsonl' does not exist"),
        ({"path": str(tmp_path / "folder")}, ConfigError, r"has no \.jsonl or \.parquet file"),
        ({"path": str(tmp_path / "empty.jsonl")}, DataError, r"empty\.jsonl: no problems in it"),
        ({"path": str(tmp_path), "train_file": "a", "test_file": "only.jsonl"}, ConfigError, r"no such file: .*/a$"),
    ):
        with pytest.raises(error, match=message):
            Jsonl(JsonlConfig(**settings))
    with pytest.raises(ConfigError, match="go together"):
        JsonlConfig(train_file="a")
    with pytest.raises(UserError, match=r"test split has no problems \(1 train, 0 test\)"):
        Jsonl(JsonlConfig(path=str(tmp_path / "only.jsonl"), test_fraction=0.0)).prompts("test")
