"""A Hugging Face tokenizer: the `tokenizer.json` that comes with a released model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from r1mega import hookimpl
from r1mega.errors import ConfigError, DataError
from r1mega.hookspecs import Register
from r1mega.recipe import files

FILE = "tokenizer.json"
# Where releases state the end-of-sequence token: its text in the first two, its id in the others. The first that states one decides.
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")

TEMPLATES = ("chat_template.jinja", "chat_template.json")  # where releases have it beside tokenizer_config.json


@dataclass(frozen=True)
class HuggingFaceConfig:
    """Where the tokenizer is, unless the stage is handed one."""

    required_paths: ClassVar[tuple[str, ...]] = ("path",)
    path: str = ""  # folder with tokenizer.json; used where the stage's tokenizer folder has none
    eos_token: str = ""  # text of the end-of-sequence token; empty: as the files beside tokenizer.json say

    def __post_init__(self) -> None:
        if self.path and not Path(self.path).expanduser().is_dir():
            raise ConfigError(f"tokenizer.path: '{self.path}' is not a folder (looked in {Path.cwd()}); it must hold {FILE}")


class HuggingFace:
    """The tokenizer.json of a Hugging Face model folder.

    Nothing is added to a text, and nothing but the end-of-sequence token is left out of a decoded one. Whether `decode(encode(text)) == text`
    is up to the tokenizer's own normaliser and decoder (byte-level ones, as in DeepSeek, Qwen and Llama 3, keep every text).
    """

    version = "1"

    def __init__(self, config: HuggingFaceConfig, *, folder: Path) -> None:
        """Load from `folder`, or from `config.path` where `folder` has no tokenizer.json.

        Raises `DataError` for a missing or damaged file or an unknown end-of-sequence token.
        """
        import tokenizers

        self.config = config
        self.folder = _find(config, folder)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(self.folder / FILE))
        except Exception as error:  # the library raises bare Exception for every damage
            raise DataError(f"{self.folder / FILE}: not a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        tokens = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1  # ids may have gaps
        self.vocab_size: int = _model_rows(self.folder, tokens)
        self.eos_id: int = self._eos_id()

    def _eos_id(self) -> int:
        if self.config.eos_token:
            return self._id_of(self.config.eos_token, "tokenizer.eos_token")
        for name, stated in _stated_eos(self.folder):
            if isinstance(stated, str):
                return self._id_of(stated, str(self.folder / name))
            if not 0 <= stated < self.vocab_size:
                raise DataError(f"{self.folder / name}: eos_token_id {stated} is outside the vocabulary of {self.vocab_size}")
            return stated
        raise DataError(f"{self.folder}: no end-of-sequence token in {', '.join(COMPANIONS)}; name it with tokenizer.eos_token")

    def _id_of(self, token: str, source: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise DataError(f"{source}: the end-of-sequence token '{token}' is not in the vocabulary of {self.folder / FILE}")
        return int(found)

    def encode(self, text: str) -> list[int]:
        """Token ids, without the beginning or end marks a post-processor would add."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text, other special tokens included (`<think>` is one in some models). A cut inside a character gives U+FFFD at the cut."""
        return str(self._tokenizer.decode([int(token) for token in tokens if token != self.eos_id], skip_special_tokens=False))

    def save(self, folder: Path) -> None:
        """Copy tokenizer.json and the files that state its end-of-sequence token and its chat template, each atomically, as they are."""
        files.make_folder(folder)
        for name in (*COMPANIONS, *TEMPLATES, FILE):  # tokenizer.json last: a folder that has it is complete
            source = self.folder / name
            if source.is_file() and source.resolve() != (folder / name).resolve():
                files.write_bytes(folder / name, source.read_bytes())


def _find(config: HuggingFaceConfig, folder: Path) -> Path:
    places = [folder, *([Path(config.path).expanduser()] if config.path else [])]
    for place in places:
        if (place / FILE).is_file():
            return place
    hint = "" if config.path else "; set tokenizer.path to a Hugging Face model folder"
    raise DataError(f"no {FILE} in {' or '.join(map(str, places))}{hint}. A folder with only tokenizer.model goes with tokenizer=sentencepiece")


def _model_rows(folder: Path, tokens: int) -> int:
    """The rows of the model's vocabulary: releases round it up, so config.json may state more than there are tokens."""
    file = folder / "config.json"
    rows = files.read_object(file).get("vocab_size") if file.is_file() else None
    if rows is None:
        return tokens
    if not isinstance(rows, int) or rows < tokens:
        raise DataError(f"{file}: vocab_size={rows}, but {folder / FILE} has token ids up to {tokens - 1}: tokenizer and model do not belong together")
    return rows


def _stated_eos(folder: Path) -> Iterator[tuple[str, str | int]]:
    """(file, token or id) of every companion file that states an end-of-sequence token; of several ids the first."""
    for name in COMPANIONS:
        file = folder / name
        if not file.is_file():
            continue
        content = files.read_object(file)
        for stated in (content.get("eos_token"), content.get("eos_token_id")):
            if isinstance(stated, dict):
                stated = stated.get("content")
            if isinstance(stated, list) and stated:
                stated = stated[0]
            if isinstance(stated, str | int) and not isinstance(stated, bool):
                yield name, stated


@hookimpl
def register_tokenizers(register: Register) -> None:
    register("huggingface", HuggingFace, config=HuggingFaceConfig)
