"""The judgements a reward model is measured on: about prompts it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from r1mega.config import TemplateConfig
from r1mega.data.judged import Judged, Judgements, measure, survey
from r1mega.data.records import JudgedResponse, PreferencePair, write_preferences
from r1mega.errors import DataError


class Characters:
    """A token for every character."""

    vocab_size, eos_id = 0x110000, 0

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def save(self, folder: Path) -> None:
        (folder / "characters").touch()


def surveyed(folder: Path, kind: Literal["helpful", "safety"], *, limit: int = 10_000, ranks: int = 1) -> Judged:
    """As the last of so many ranks sees it."""
    examples = Judgements(folder, kind, TemplateConfig(), Characters())
    return survey(examples, limit=limit, held_out=0.3, rank=ranks - 1, world_size=ranks,
                  gather=lambda mine: [*(measure(examples, 0.3, rank, ranks) for rank in range(ranks - 1)), mine])


@pytest.mark.parametrize("kind", ["helpful", "safety"])
def test_ranks_that_encode_a_share_each_find_what_one_finds(kind: Literal["helpful", "safety"], tmp_path: Path) -> None:
    texts = ["x" * (7 * number % 31) for number in range(11)]
    write_preferences(tmp_path, [PreferencePair(f"p{number}", f"Question {number}?", text, "bad") for number, text in enumerate(texts)],
                      [JudgedResponse(f"p{number}", f"Question {number}?", text, safe=True) for number, text in enumerate(texts)])
    alone, shared = surveyed(tmp_path, kind, limit=100), surveyed(tmp_path, kind, limit=100, ranks=3)
    for name in ("lengths", "train", "held_out"):
        assert (getattr(alone, name) == getattr(shared, name)).all(), name
    assert [len(alone.examples[number].sequences[0]) for number in range(11)] == alone.lengths[:, 0].tolist()
    shortest = int(alone.lengths.max(axis=1).min())
    assert surveyed(tmp_path, kind, limit=shortest, ranks=3).dropped == int((alone.lengths.max(axis=1) > shortest).sum()) > 0
    with pytest.raises(DataError, match=rf"all 11 rows are longer than 2 tokens; a {kind} reward model"):
        surveyed(tmp_path, kind, limit=2, ranks=2)


def test_a_set_without_rows_of_its_kind_is_named(tmp_path: Path) -> None:
    write_preferences(tmp_path, [], [])
    with pytest.raises(DataError, match=r"pairs.jsonl: no rows; a helpful reward model learns from them"):
        surveyed(tmp_path, "helpful", ranks=2)


@pytest.mark.parametrize("kind", ["helpful", "safety"])
def test_no_held_out_judgement_is_about_a_prompt_that_is_trained_on(kind: Literal["helpful", "safety"], tmp_path: Path) -> None:
    """Four judgements of each of 50 prompts, which differ in case and spaces at most."""
    questions = {f"{prompt}.{k}": ("how  do I " if k % 2 else "How do I ") + f"bake bread {prompt}?" for prompt in range(50) for k in range(4)}
    pairs = [PreferencePair(id_, question, "good", "bad") for id_, question in questions.items()]
    judged = [JudgedResponse(id_, question, "good", safe=True) for id_, question in questions.items()]
    write_preferences(tmp_path, pairs, judged)
    judged = surveyed(tmp_path, kind)
    sides = [{judged.examples[index].id.partition(".")[0] for index in side} for side in (judged.train, judged.held_out)]
    assert len(judged.train) + len(judged.held_out) == 200
    assert sides[0].isdisjoint(sides[1])
    assert 5 <= len(sides[1]) <= 25, "the fraction is that of the prompts"
