"""SentencePiece: lossless, deterministic, bounded, and readable by the library itself."""

import random
import re
import threading

import pytest
import sentencepiece
from r1mega_plugins.tasks.arithmetic import Arithmetic, ArithmeticConfig
from r1mega_plugins.tokenizers.sentencepiece import SentencePiece, SentencePieceConfig

from r1mega.errors import ConfigError, DataError

CORPUS = [f"  {question}\n\n {response}\n" for question, response in Arithmetic(ArithmeticConfig()).documents(600, seed=0)]
PROSE = [
    "Once upon a time,\tthere were  two numbers.\n    They added up.", "The end of the tale of the two numbers.\n", "Ünïcödé — 数学 ∑ 🙂 naïve",
] * 5


def trained(folder, corpus=CORPUS, **settings) -> SentencePiece:
    config = SentencePieceConfig(**settings)
    SentencePiece.train(config, corpus, folder)
    return SentencePiece(config, folder=folder)


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
@pytest.mark.parametrize("corpus", [CORPUS, PROSE], ids=["arithmetic", "prose"])
def test_round_trip_keeps_every_character_of_the_corpus(tmp_path, model_type, corpus):
    tokenizer = trained(tmp_path, corpus, model_type=model_type)
    texts = [*corpus, *(document[cut:] for cut, document in enumerate(corpus[:15])), "", " ", "\n", "  \n  "]
    known = set().union(*(re.sub(r"</?(think|answer)>", "", document) for document in corpus))
    for text in texts:
        if set(re.sub(r"</?(think|answer)>", "", text)) <= known:
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokens_of_a_prefix_decode_to_a_prefix(tmp_path):
    tokenizer = trained(tmp_path, PROSE)
    for document in PROSE[:3]:
        tokens = tokenizer.encode(document)
        for cut in range(len(tokens) + 1):
            assert tokenizer.decode(tokens[:cut]) + tokenizer.decode(tokens[cut:]) == document


def test_byte_fallback_keeps_any_text(tmp_path):
    tokenizer = trained(tmp_path, byte_fallback=True)
    generator = random.Random(0)

    def character() -> str:
        return chr(generator.choice((generator.randrange(1, 0xD800), generator.randrange(0xE000, 0x110000), 0x2581, 32)))

    texts = ["".join(character() for _ in range(20)) for _ in range(200)]
    for text in [*texts, "▁", " ▁ ▁▁", "</s><unk><0x41>", "a\0b"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_id not in tokenizer.encode("</s>"), "text cannot forge the end of a sequence"


def test_vocabulary_is_bounded_and_small_for_a_small_corpus(tmp_path):
    assert trained(tmp_path / "a").vocab_size < 40
    prose = trained(tmp_path / "b", PROSE, vocab_size=64)
    assert 32 < prose.vocab_size <= 64


def test_symbols_and_digits_are_single_tokens(tmp_path):
    tokenizer = trained(tmp_path)
    for symbol in ("<think>", "</think>", "<answer>", "</answer>", "\n", *"0123456789"):
        assert len(tokenizer.encode(symbol)) == 1, symbol
    assert len(tokenizer.encode("<think>\n17</think>")) == 5
    assert len(tokenizer.encode("2025")) == 4


def test_shipped_documents_are_short(tmp_path):
    documents = [question + response for question, response in Arithmetic(ArithmeticConfig()).documents(500, seed=1)]
    tokenizer = trained(tmp_path, documents)
    lengths = [len(tokenizer.encode(document)) + 1 for document in documents]  # + 1: end of sequence
    assert sum(lengths) / len(lengths) < 30
    assert max(lengths) <= 40


def test_training_is_deterministic_and_saving_copies_the_bytes(tmp_path):
    first = trained(tmp_path / "a", PROSE)
    trained(tmp_path / "b", PROSE)
    first.save(tmp_path / "c")
    assert len({(tmp_path / name / "tokenizer.model").read_bytes() for name in "abc"}) == 1


def test_library_reads_the_saved_model_alike(tmp_path):
    tokenizer = trained(tmp_path, PROSE)
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (library.vocab_size(), library.eos_id())
    assert [tokenizer.encode(text) for text in PROSE] == [library.encode(text) for text in PROSE]
    assert tokenizer.decode([*tokenizer.encode("two"), tokenizer.eos_id]) == "two"


def test_documents_longer_than_the_librarys_default_limit_count(tmp_path):
    tokenizer = trained(tmp_path, ["short text", "x" * 5000 + "é"])
    assert tokenizer.decode(tokenizer.encode("xé")) == "xé"


def test_concurrent_writers_leave_one_whole_file_and_nothing_else(tmp_path):
    tokenizer = trained(tmp_path / "source")
    threads = [threading.Thread(target=tokenizer.save, args=(tmp_path / "target",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [file.name for file in (tmp_path / "target").iterdir()] == ["tokenizer.model"]
    assert SentencePiece(SentencePieceConfig(), folder=tmp_path / "target").encode("1+2") == tokenizer.encode("1+2")


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    tokenizer = trained(tmp_path)
    before = (tmp_path / "tokenizer.model").read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.model"]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.model: no such file"):
        SentencePiece(SentencePieceConfig(), folder=tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"tokenizer\.model: not a SentencePiece model"):
        SentencePiece(SentencePieceConfig(), folder=tmp_path)
    with pytest.raises(DataError, match="the corpus has no text"):
        SentencePiece.train(SentencePieceConfig(), ["", ""], tmp_path)
    for settings in ({"vocab_size": 10}, {"vocab_size": 100, "byte_fallback": True}, {"vocab_size": 10, "model_type": "char"}):
        with pytest.raises(ConfigError, match=re.escape(f"tokenizer.vocab_size={settings['vocab_size']} is too small")):
            SentencePiece.train(SentencePieceConfig(**settings), CORPUS, tmp_path)
    for settings in ({"vocab_size": 0}, {"character_coverage": 1.5}, {"user_defined_symbols": ["a", "a"]}):
        with pytest.raises(ConfigError, match=f"tokenizer.{next(iter(settings))} must be"):
            SentencePieceConfig(**settings)


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
def test_the_smallest_vocabulary_it_asks_for_is_enough(tmp_path, model_type):
    with pytest.raises(ConfigError) as caught:
        SentencePiece.train(SentencePieceConfig(vocab_size=5, model_type=model_type), CORPUS, tmp_path)
    needed = int(re.search(r"alone need (\d+)", str(caught.value))[1])
    tokenizer = trained(tmp_path, vocab_size=needed, model_type=model_type)
    assert tokenizer.decode(tokenizer.encode(CORPUS[0])) == CORPUS[0]
    assert tokenizer.vocab_size <= needed
