"""A SentencePiece tokenizer: trained by a recipe on its own corpus, or brought along as a `tokenizer.model`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from r1mega import hookimpl
from r1mega.errors import ConfigError, DataError, R1MegaError
from r1mega.hookspecs import Register
from r1mega.recipe import files

FILE = "tokenizer.model"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's inner name for a space


@dataclass(frozen=True)
class SentencePieceConfig:
    """How to train one; loading needs none of it."""

    vocab_size: int = 512  # an upper bound: a small corpus gives fewer pieces
    model_type: Literal["bpe", "unigram", "char"] = "bpe"
    split_digits: bool = True
    user_defined_symbols: list[str] = field(default_factory=lambda: ["<think>", "</think>", "<answer>", "</answer>", "\n"])
    character_coverage: float = 1.0  # share of the corpus' characters that get a piece; the rest become bytes or <unk>
    byte_fallback: bool = False  # 256 more pieces, and every text survives; without it unseen characters become <unk>

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ConfigError(f"tokenizer.vocab_size must be at least 1, got {self.vocab_size}")
        if not 0 < self.character_coverage <= 1:
            raise ConfigError(f"tokenizer.character_coverage must be above 0 and at most 1, got {self.character_coverage}")
        if len(set(self.user_defined_symbols)) != len(self.user_defined_symbols) or "" in self.user_defined_symbols:
            raise ConfigError(f"tokenizer.user_defined_symbols must be distinct and not empty, got {self.user_defined_symbols}")


class SentencePiece:
    """SentencePiece (BPE, unigram or characters), trainable on a recipe's own corpus.

    Text is never normalised: `decode(encode(text)) == text` for any text made of the symbols and of the characters that the training corpus has
    beside them, white space included, and for any text at all with `byte_fallback`. Decoding is plain concatenation of pieces, so a prefix of
    the tokens decodes to a prefix of the text (with `byte_fallback`, up to a last character that is still incomplete). The end-of-sequence
    token decodes to nothing.
    """

    version = "1"

    def __init__(self, config: SentencePieceConfig, *, folder: Path) -> None:
        """Load `folder/tokenizer.model`. Raises `DataError` where it is missing, damaged or has no end-of-sequence piece."""
        import sentencepiece

        self.config = config
        file = folder / FILE
        if not file.is_file():
            hint = "; set tokenizer=huggingface for the tokenizer.json that is there" if (folder / "tokenizer.json").is_file() else ""
            raise DataError(f"{file}: no such file; a sentencepiece tokenizer's folder holds {FILE}{hint}")
        self._model = file.read_bytes()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{file}: not a SentencePiece model: {error}") from error
        self.vocab_size: int = self._processor.get_piece_size()
        self.eos_id: int = self._processor.eos_id()
        if self.eos_id < 0:
            raise DataError(f"{file}: the model has no end-of-sequence piece; train it with an eos_id")
        literal = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._literal_space = literal if self._processor.unk_id() not in literal else None

    def encode(self, text: str) -> list[int]:
        """Token ids, without beginning or end marks. Text that spells a control piece, such as `</s>`, stays text."""
        if self._literal_space is None or SPACE not in text:
            return list(self._processor.encode(text))
        # The library cannot tell this character from a space; its bytes can.
        ids: list[int] = []
        for part in re.split(f"({SPACE})", text):
            ids += self._literal_space if part == SPACE else self._processor.encode(part)
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The exact text of the tokens; `decode(a) + decode(b) == decode(a + b)` wherever the cut is between characters."""
        return str(self._processor.decode([int(token) for token in tokens]))

    def save(self, folder: Path) -> None:
        """Write `folder/tokenizer.model` atomically."""
        files.make_folder(folder)
        files.write_bytes(folder / FILE, self._model)

    @staticmethod
    def train(config: SentencePieceConfig, documents: Iterable[str], folder: Path) -> None:
        """Train on the documents and write `folder/tokenizer.model` atomically. The same documents give the same bytes.

        Raises `DataError` for an empty corpus, `ConfigError` where `vocab_size` has no room for the corpus' characters.
        """
        corpus = [document for document in documents if document]
        if not corpus:
            raise DataError("a sentencepiece tokenizer cannot be trained: the corpus has no text")
        _check_room(config, corpus)
        files.make_folder(folder)
        files.write_bytes(folder / FILE, _train(config, corpus))


def _check_room(config: SentencePieceConfig, corpus: Iterable[str]) -> None:
    """The library's own message for this names neither the setting nor, for every model type, the size."""
    needed = 2 + len(config.user_defined_symbols) + 256 * config.byte_fallback  # 2: <unk> and </s>
    if config.character_coverage == 1:
        symbols = "|".join(map(re.escape, sorted(config.user_defined_symbols, key=len, reverse=True)))
        needed += len(set().union(*(re.sub(symbols, "", document) if symbols else document for document in corpus)))
    if needed > config.vocab_size:
        raise ConfigError(f"tokenizer.vocab_size={config.vocab_size} is too small: single characters, symbols"
                          f"{' and bytes' * config.byte_fallback} alone need {needed}; raise it, or lower tokenizer.character_coverage")


def _train(config: SentencePieceConfig, corpus: Sequence[str]) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus), model_writer=model, model_type=config.model_type,
            vocab_size=config.vocab_size, hard_vocab_limit=False, character_coverage=config.character_coverage,
            split_digits=config.split_digits, user_defined_symbols=config.user_defined_symbols, byte_fallback=config.byte_fallback,
            # text stays as it is
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            # every document counts, whole and in order, on one thread: the same corpus gives the same model
            max_sentence_length=max(len(document.encode()) for document in corpus) + 1, shuffle_input_sentence=False, num_threads=1,
            unk_id=0, eos_id=1, bos_id=-1, pad_id=-1, minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        raise R1MegaError(f"training the sentencepiece tokenizer on {len(corpus)} documents failed: {error}") from error
    return model.getvalue()


@hookimpl
def register_tokenizers(register: Register) -> None:
    register("sentencepiece", SentencePiece, config=SentencePieceConfig)
