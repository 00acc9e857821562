"""tokenizer.json folders, against transformers' own reading of the same folder."""

import json

import pytest

tokenizers = pytest.importorskip("tokenizers")

from r1mega_plugins.tokenizers.huggingface import HuggingFace, HuggingFaceConfig  # noqa: E402

from r1mega.errors import ConfigError, DataError  # noqa: E402

TEXTS = ["What is 17+25?", "  two  spaces\n\nand\tlines ", "Ünïcödé — 数学 ∑ 🙂", "<think>so</think><answer>42</answer>", "", " "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-level BPE with a begin mark in its post-processor, as released models have."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<begin>", "<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    built.train_from_iterator(TEXTS * 4, trainer)
    built.add_special_tokens([AddedToken("<think>", special=True)])
    built.post_processor = processors.TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", built.token_to_id("<begin>"))])
    built.enable_truncation(3)
    target = tmp_path_factory.mktemp("tokenizer")
    built.save(str(target / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": {"content": "<end>", "__type": "AddedToken"}}
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    return target


def copy(folder, target, **companions):
    """tokenizer.json alone, with other files beside it."""
    target.mkdir(exist_ok=True)
    (target / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    for name, content in companions.items():
        (target / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return target


def test_agrees_with_transformers(folder):
    transformers = pytest.importorskip("transformers")
    ours, theirs = HuggingFace(HuggingFaceConfig(), folder=folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert (ours.vocab_size, ours.eos_id) == (len(theirs), theirs.eos_token_id)
    for text in TEXTS:
        tokens = theirs.encode(text, add_special_tokens=False, truncation=False)
        assert ours.encode(text) == tokens
        assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False) == text


def test_only_the_end_mark_is_left_out_of_the_text(folder):
    tokenizer = HuggingFace(HuggingFaceConfig(), folder=folder)
    assert tokenizer.decode([*tokenizer.encode("<think>so</think>"), tokenizer.eos_id]) == "<think>so</think>"


def test_saved_folder_loads_alike(folder, tmp_path):
    first = HuggingFace(HuggingFaceConfig(path=str(folder)), folder=tmp_path / "nothing here")
    first.save(tmp_path / "out")
    again = HuggingFace(HuggingFaceConfig(), folder=tmp_path / "out")
    again.save(tmp_path / "out")
    assert (again.vocab_size, again.eos_id) == (first.vocab_size, first.eos_id)
    assert [again.encode(text) for text in TEXTS] == [first.encode(text) for text in TEXTS]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("companions", [
    {"tokenizer_config": {"eos_token": "<end>"}},
    {"special_tokens_map": {"eos_token": {"content": "<end>"}}},
    {"tokenizer_config": {}, "generation_config": {"eos_token_id": [1, 0]}},
    {"config": {"eos_token_id": 1}},
    {"tokenizer_config": {"eos_token": "<end>"}, "config": {"eos_token_id": 0}},
])
def test_end_mark_is_found_where_releases_state_it(folder, tmp_path, companions):
    assert HuggingFace(HuggingFaceConfig(), folder=copy(folder, tmp_path / "t", **companions)).eos_id == 1


def test_configured_end_mark_wins(folder):
    assert HuggingFace(HuggingFaceConfig(eos_token="<begin>"), folder=folder).eos_id == 0


@pytest.mark.parametrize(("companions", "settings", "message"), [
    ({}, {}, r"no end-of-sequence token in tokenizer_config\.json, .*name it with tokenizer\.eos_token"),
    ({"tokenizer_config": {"eos_token": "<stop>"}}, {}, r"tokenizer_config\.json: the end-of-sequence token '<stop>' is not in the vocabulary"),
    ({}, {"eos_token": "<stop>"}, r"tokenizer\.eos_token: the end-of-sequence token '<stop>' is not in"),
    ({"config": {"eos_token_id": 5000}}, {}, r"config\.json: eos_token_id 5000 is outside the vocabulary of \d+"),
    ({"tokenizer_config": "{"}, {}, r"tokenizer_config\.json: not valid JSON"),
    ({"tokenizer_config": "[]"}, {}, r"tokenizer_config\.json: expected a JSON object, got list"),
    ({"tokenizer": "{}"}, {}, r"tokenizer\.json: not a tokenizer"),
])
def test_damaged_folders_are_named(folder, tmp_path, companions, settings, message):
    with pytest.raises(DataError, match=message):
        HuggingFace(HuggingFaceConfig(**settings), folder=copy(folder, tmp_path / "t", **companions))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer\.json in .*set tokenizer\.path"):
        HuggingFace(HuggingFaceConfig(), folder=tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer\.path: '.*absent' is not a folder"):
        HuggingFaceConfig(path=str(tmp_path / "absent"))
