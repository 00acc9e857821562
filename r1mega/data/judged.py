"""What a reward model learns from, as tokens: pairs whose first response is preferred, or single responses with a verdict (R1_RECIPE 2.6).

As in `corpus.py`, rows stay on disk and are encoded when their turn comes; each rank encodes its share once to learn the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from r1mega.config import TemplateConfig
from r1mega.data.chat import split_response
from r1mega.data.corpus import Gather
from r1mega.data.records import JUDGED, PAIRS, JudgedResponse, PreferencePair, Rows
from r1mega.errors import DataError
from r1mega.hookspecs import Tokenizer
from r1mega.rollout.prompts import encode_prompt
from r1mega.split import split_of, text_id
from r1mega.types import Prompt, TrainSequence

Kind = Literal["helpful", "safety"]
Scope = Literal["response", "summary"]
# The helpful model reads what the user reads, the safety model the reasoning too (paper v2 section 3.1).
SCOPES: dict[Kind, Scope] = {"helpful": "summary", "safety": "response"}


@dataclass(frozen=True)
class Example:
    """One judgement: (chosen, rejected), or one response. Weight 1 and the sign of the verdict stand at each sequence's last token."""

    id: str
    problem: str  # `text_id` of the prompt: judgements of one prompt share it
    sequences: tuple[TrainSequence, ...]  # `advantages` at the last token: 1 chosen or safe, -1 rejected or unsafe


def judged_text(response: str, scope: Scope) -> str:
    """The part of a whole response that is judged."""
    return split_response(response)[1] if scope == "summary" else response


def judged_tokens(prompt: Prompt, response: str, scope: Scope, template: TemplateConfig, tokenizer: Tokenizer) -> np.ndarray:
    """The prompt in the template, the judged part, end of sequence: int64 [L]. The score is the scalar head's value at the last one."""
    text = tokenizer.encode(judged_text(response, scope))
    return np.array((*encode_prompt(prompt, template.prompt, tokenizer, template.turn, template.system).tokens, *text, tokenizer.eos_id), np.int64)


class Judgements:
    """The judgements of a `PreferenceSet` that one kind of reward model learns from, encoded on access; in memory is where the lines begin."""

    def __init__(self, folder: Path, kind: Kind, template: TemplateConfig, tokenizer: Tokenizer) -> None:
        """Raises `DataError` where there is no such file."""
        self.kind, self.responses = kind, 2 if kind == "helpful" else 1  # of one judgement
        self._rows: Rows[PreferencePair] | Rows[JudgedResponse]
        self._rows = Rows(folder / PAIRS, PreferencePair) if kind == "helpful" else Rows(folder / JUDGED, JudgedResponse)
        self._template, self._tokenizer = template, tokenizer

    @property
    def path(self) -> Path:
        return self._rows.path

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        """Raises `DataError` with file and line for a malformed row."""
        row = self._rows[index]
        responses = ((row.chosen, 1.0), (row.rejected, -1.0)) if isinstance(row, PreferencePair) else ((row.response, 1.0 if row.safe else -1.0),)
        return _example(row.id, row.prompt, responses, self.kind, self._template, self._tokenizer)


@dataclass(frozen=True)
class Judged:
    """Which judgements are trained on, which are held out; indices into `examples`, in the order of the file."""

    examples: Judgements
    lengths: np.ndarray  # int64 [all judgements, 2 (chosen, rejected) or 1], in tokens
    train: np.ndarray  # int64 [n]
    held_out: np.ndarray  # int64 [m]
    dropped: int  # judgements with a response longer than the limit


def survey(examples: Judgements, *, limit: int, held_out: float, rank: int, world_size: int, gather: Gather) -> Judged:
    """Encode this rank's share of the judgements and put the ranks' findings together. A collective through `gather`.

    Judgements with a response of more than `limit` tokens are left out. The share `held_out` is chosen by the hash of the prompt: no held-out judgement
    is about a prompt that is trained on. Raises `DataError` for a malformed row, and where none is left.
    """
    table = np.zeros((len(examples), examples.responses + 1), np.int64)
    for other, found in enumerate(gather(measure(examples, held_out, rank, world_size))):
        table[other::world_size] = found
    lengths, test = table[:, :-1], table[:, -1] > 0
    fits = (lengths <= limit).all(axis=1)
    if not fits.any():
        raise DataError(f"{examples.path}: {'no rows' if not len(examples) else f'all {len(examples)} rows are longer than {limit} tokens'}; a "
                        f"{examples.kind} reward model learns from them")
    return Judged(examples, lengths, np.flatnonzero(fits & ~test), np.flatnonzero(fits & test), int((~fits).sum()))


def measure(examples: Judgements, held_out: float, rank: int, world_size: int) -> np.ndarray:
    """Of each judgement of this rank's share the tokens of its sequences and whether it is held out: int64 [share, responses + 1]."""
    found = [(*map(len, example.sequences), split_of(f"held out of the reward model: {example.problem}", held_out, 0) == "test")
             for example in (examples[index] for index in range(rank, len(examples), world_size))]
    return np.array(found, np.int64).reshape(len(found), examples.responses + 1)


def _example(id_: str, question: str, responses: Sequence[tuple[str, float]], kind: Kind, template: TemplateConfig, tokenizer: Tokenizer) -> Example:
    sequences = []
    for place, (response, sign) in enumerate(responses):
        tokens = judged_tokens(Prompt(id_, question), response, SCOPES[kind], template, tokenizer)
        last = (np.arange(len(tokens)) == len(tokens) - 1).astype(np.float32)
        sequences.append(TrainSequence(f"{id_}/{place}", tokens, last, advantages=last * np.float32(sign)))
    return Example(id_, text_id(question), tuple(sequences))
