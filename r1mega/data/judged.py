"""What a reward model learns from, as tokens: pairs whose first response is preferred, or single responses with a verdict (R1_RECIPE 2.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from r1mega.config import TemplateConfig
from r1mega.data.chat import split_response
from r1mega.data.records import read_preferences
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

    def __len__(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)


def judged_text(response: str, scope: Scope) -> str:
    """The part of a whole response that is judged."""
    return split_response(response)[1] if scope == "summary" else response


def judged_tokens(prompt: Prompt, response: str, scope: Scope, template: TemplateConfig, tokenizer: Tokenizer) -> np.ndarray:
    """The prompt in the template, the judged part, end of sequence: int64 [L]. The score is the scalar head's value at the last one."""
    text = tokenizer.encode(judged_text(response, scope))
    return np.array((*encode_prompt(prompt, template.prompt, tokenizer, template.turn).tokens, *text, tokenizer.eos_id), np.int64)


def read_examples(folder: Path, kind: Kind, template: TemplateConfig, tokenizer: Tokenizer, *, max_length: int) -> tuple[list[Example], int]:
    """The examples of a `PreferenceSet` for one kind of reward model, and how many were left out as longer than `max_length` tokens.

    Raises `DataError` where there is none.
    """
    pairs, judged = read_preferences(folder)
    table = "pairs.jsonl" if kind == "helpful" else "judged.jsonl"
    if kind == "helpful":
        examples = [_example(pair.id, pair.prompt, ((pair.chosen, 1.0), (pair.rejected, -1.0)), kind, template, tokenizer) for pair in pairs]
    else:
        examples = [_example(row.id, row.prompt, ((row.response, 1.0 if row.safe else -1.0),), kind, template, tokenizer) for row in judged]
    kept = [example for example in examples if all(len(sequence) <= max_length for sequence in example.sequences)]
    if not kept:
        raise DataError(f"{folder / table}: {'no rows' if not examples else f'all {len(examples)} rows are longer than {max_length} tokens'}; a "
                        f"{kind} reward model learns from them")
    return kept, len(examples) - len(kept)


def _example(id_: str, question: str, responses: Sequence[tuple[str, float]], kind: Kind, template: TemplateConfig, tokenizer: Tokenizer) -> Example:
    sequences = []
    for place, (response, sign) in enumerate(responses):
        tokens = judged_tokens(Prompt(id_, question), response, SCOPES[kind], template, tokenizer)
        last = (np.arange(len(tokens)) == len(tokens) - 1).astype(np.float32)
        sequences.append(TrainSequence(f"{id_}/{place}", tokens, last, advantages=last * np.float32(sign)))
    return Example(id_, text_id(question), tuple(sequences))


def hold_out(examples: Sequence[Example], fraction: float) -> tuple[list[Example], list[Example]]:
    """(training examples, held-out ones), by the hash of the prompt: no held-out judgement is about a prompt that is trained on."""
    held_out = [split_of(f"held out of the reward model: {example.problem}", fraction, 0) == "test" for example in examples]
    return ([e for e, out in zip(examples, held_out, strict=True) if not out], [e for e, out in zip(examples, held_out, strict=True) if out])
