"""Hugging Face data sets, read from folders on disk: no network."""

import json

import pytest

datasets = pytest.importorskip("datasets")

from r1mega_plugins.tasks.hf_datasets import HfDatasets, HfDatasetsConfig  # noqa: E402

from r1mega.errors import ConfigError, DataError, UserError  # noqa: E402


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """What HF_HUB_OFFLINE=1 does at import."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set folder with a train split (jsonl) and a test split, one problem in both."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "data"
    data.mkdir()
    for split, numbers in (("train", range(20)), ("test", range(19, 25))):
        rows = [{"problem": f"What is {n}+1000?", "solution": f"add\n#### {n + 1000:,}"} for n in numbers]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return data


FIELDS = {"question_field": "problem", "answer_field": "solution"}


def test_local_folder_with_both_splits(folder):
    task = HfDatasets(HfDatasetsConfig(path=str(folder), answer_format="gsm8k", **FIELDS))
    assert [prompt.answer for prompt in task.prompts("test")] == [str(n + 1000) for n in range(19, 25)]
    assert [prompt.question for prompt in task.prompts("train")] == [f"What is {n}+1000?" for n in range(19)], "the shared problem left train"
    assert task.split.leaked == 1
    assert dict(task.documents(19, 0))["What is 3+1000?"] == "<think>add</think><answer>1003</answer>"


def test_one_split_is_split_by_identity(folder):
    task = HfDatasets(HfDatasetsConfig(path=str(folder), test_split="", test_fraction=0.4, answer_format="gsm8k", **FIELDS))
    assert len(task.prompts("train")) + len(task.prompts("test")) == 20
    assert 0 < len(task.prompts("test")) < 20


def test_mistakes_are_named(folder):
    for settings, error, message in (
        ({}, ConfigError, r"task\.path is empty"),
        ({"path": str(folder), "test_split": "tests", **FIELDS}, ConfigError, r"task\.test_split: .* no split 'tests'\. Did you mean 'test'\?"),
        ({"path": str(folder)}, DataError, r"\[train\]:1 and 19 other rows: no field 'question' \(task\.question_field\)"),
    ):
        with pytest.raises(error, match=message):
            HfDatasets(HfDatasetsConfig(**settings))


def test_a_data_set_out_of_reach_is_one_line():
    with pytest.raises(UserError, match=r"data set 'nobody/nothing' cannot be loaded: .*use a local copy with task=jsonl") as caught:
        HfDatasets(HfDatasetsConfig(path="nobody/nothing"))
    assert len(str(caught.value).splitlines()) == 1
