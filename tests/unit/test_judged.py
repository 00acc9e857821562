"""The judgements a reward model is measured on: about prompts it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from r1mega.config import TemplateConfig
from r1mega.data.judged import hold_out, read_examples
from r1mega.data.records import JudgedResponse, PreferencePair, write_preferences


class Characters:
    """A token for every character."""

    vocab_size, eos_id = 0x110000, 0

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def save(self, folder: Path) -> None:
        (folder / "characters").touch()


@pytest.mark.parametrize("kind", ["helpful", "safety"])
def test_no_held_out_judgement_is_about_a_prompt_that_is_trained_on(kind: Literal["helpful", "safety"], tmp_path: Path) -> None:
    """Four judgements of each of 50 prompts, which differ in case and spaces at most."""
    questions = {f"{prompt}.{k}": ("how  do I " if k % 2 else "How do I ") + f"bake bread {prompt}?" for prompt in range(50) for k in range(4)}
    pairs = [PreferencePair(id_, question, "good", "bad") for id_, question in questions.items()]
    judged = [JudgedResponse(id_, question, "good", safe=True) for id_, question in questions.items()]
    write_preferences(tmp_path, pairs, judged)
    examples, _ = read_examples(tmp_path, kind, TemplateConfig(), Characters(), max_length=10_000)
    train, held_out = hold_out(examples, 0.3)
    sides = [{example.id.partition(".")[0] for example in side} for side in (train, held_out)]
    assert len(train) + len(held_out) == 200
    assert sides[0].isdisjoint(sides[1])
    assert 5 <= len(sides[1]) <= 25, "the fraction is that of the prompts"
