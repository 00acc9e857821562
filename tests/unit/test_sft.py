"""The sft stage's parts: its loss against transformers, its epochs, what it drops, holds out and refuses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import policy_models as models
import pytest
import torch
from r1mega_plugins.models.qwen2 import Qwen2Config
from r1mega_plugins.stages.sft import SFT, SFTConfig, response_loss
from test_policy_transformers import llama, to_transformers

from r1mega.config import OptimizerConfig, PluginChoice, TemplateConfig
from r1mega.data.corpus import Corpus, EncodedRows, survey
from r1mega.data.records import SampleRecord, write_samples
from r1mega.errors import ConfigError, DataError

SGD = OptimizerConfig(optimizer="sgd", lr=0.1, weight_decay=0.0, clip_grad=1e9, use_distributed_optimizer=False)


class Letters:
    """A token for each printable character, end of sequence 0; 96 in all, as many as the tests' tiny models have."""

    vocab_size, eos_id = models.VOCAB, 0

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 31 for letter in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(token + 31) for token in tokens if token)

    def save(self, folder: Path) -> None:
        (folder / "letters").touch()


def sample(number: int, **changes: Any) -> SampleRecord:
    values = {"id": f"s{number}", "prompt": f"{number}+{number}=", "reasoning": "x" * (number % 7), "response": str(2 * number)}
    return SampleRecord(**values | changes)


def rows(tmp_path: Path, *sets: Sequence[SampleRecord], template: TemplateConfig | None = None) -> EncodedRows:
    folders = [tmp_path / str(number) for number in range(len(sets))]
    for folder, samples in zip(folders, sets, strict=True):
        write_samples(folder, samples)
    return EncodedRows(folders, template or TemplateConfig(), Letters())


def surveyed(table: EncodedRows, *, limit: int = 100, held_out: float = 0.0) -> Corpus:
    return survey(table, limit=limit, held_out=held_out, rank=0, world_size=1, gather=lambda mine: [mine])


def stage(**settings: Any) -> SFT:
    return SFT(SFTConfig(**{"max_length": 128, "micro_batch_tokens": 128} | settings))


def oracle(policy: Any, sequences: Sequence[Any]) -> float:
    """transformers' own loss on the same weights: one sequence at a time, label -100 on the prompt, divided once by all response tokens."""
    _, theirs = llama()
    theirs.load_state_dict(to_transformers(policy))
    labels = [torch.from_numpy(np.where(s.weights > 0, s.tokens, -100)) for s in sequences]
    total = sum(int((row[1:] != -100).sum()) for row in labels)
    with torch.no_grad():
        return sum(float(theirs(input_ids=torch.from_numpy(s.tokens)[None], labels=row[None], num_items_in_batch=total).loss)
                   for s, row in zip(sequences, labels, strict=True))


def test_loss_of_packed_responses_is_that_of_transformers(tmp_path: Path) -> None:
    """Sequences packed together see nothing of each other, prompts count nothing, and one denominator covers the step."""
    policy = models.build(llama()[0], optimizer=SGD)
    corpus = surveyed(rows(tmp_path, [sample(n) for n in range(9)]))
    sequences = [corpus.rows[i] for i in range(9)]
    expected = oracle(policy, sequences)
    batches, packed = stage()._packed(policy, corpus, range(9))
    assert 1 < len(batches) < 9, "nothing was packed: the test shows nothing"
    assert stage()._validate(policy, Corpus(corpus.rows, corpus.lengths, corpus.train, np.arange(9), 0)) == pytest.approx(expected, rel=1e-5)
    result = policy.train_step(batches, response_loss)
    assert result.loss == pytest.approx(expected, rel=1e-5)
    assert result.sums["loss_tokens"] == sum(s.weights.sum() for s in sequences)
    assert packed.tokens == corpus.tokens == sum(len(s) for s in sequences)
    for _ in range(3):
        result = policy.train_step(batches, response_loss)
    assert result.loss < expected


def test_every_epoch_trains_every_sample_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    corpus = surveyed(rows(tmp_path, [sample(n) for n in range(10)], [sample(n) for n in range(20, 23)]))
    assert corpus.steps_per_epoch(4) == 4
    steps = [corpus.batch(step, 4, seed=3) for step in range(1, 9)]
    assert [epoch for epoch, _ in steps] == [0] * 4 + [1] * 4
    assert [len(batch) for _, batch in steps] == [4, 4, 4, 1] * 2
    epochs = [[i for epoch, batch in steps if epoch == number for i in batch] for number in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(13)), "extra samples are mixed in, each once"
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])
    assert corpus.batch(6, 4, seed=3) == steps[5] != corpus.batch(6, 4, seed=4), "a step's samples are a function of (seed, step)"


def test_ranks_share_the_reading_and_agree(tmp_path: Path) -> None:
    table = rows(tmp_path, [sample(n) for n in range(11)])
    shares: list[np.ndarray] = []
    for rank in range(3):  # what each rank brings
        with pytest.raises(StopIteration):
            survey(table, limit=50, held_out=0.3, rank=rank, world_size=3, gather=lambda mine: shares.append(mine) or next(iter(())))
    assert [len(share) for share in shares] == [4, 4, 3]
    together = survey(table, limit=50, held_out=0.3, rank=1, world_size=3, gather=lambda _: shares)
    alone = surveyed(table, limit=50, held_out=0.3)
    for name in ("lengths", "train", "held_out"):
        assert getattr(together, name).tolist() == getattr(alone, name).tolist()
    assert alone.lengths.tolist() == [len(table[i]) for i in range(11)]


def test_too_long_samples_are_dropped_counted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = rows(tmp_path, [sample(1), sample(2, reasoning="y" * 300), sample(3)])
    with caplog.at_level(logging.WARNING):
        corpus = surveyed(table, limit=len(table[1]) - 1)
    assert (corpus.dropped, corpus.train.tolist()) == (1, [0, 2])
    assert f"1 of 3 samples are longer than {len(table[1]) - 1} tokens" in caplog.text
    assert surveyed(table, limit=len(table[1])).dropped == 0


def test_all_samples_of_a_prompt_are_held_out_together(tmp_path: Path) -> None:
    several = [sample(n, id=f"{n}#{k}", response=str(k)) for n in range(200) for k in range(3)]
    corpus = surveyed(rows(tmp_path, several), held_out=0.2)
    sides = [{several[i].prompt for i in side} for side in (corpus.train.tolist(), corpus.held_out.tolist())]
    assert not sides[0] & sides[1]
    assert len(corpus.train) + len(corpus.held_out) == 600
    assert 20 < len(sides[1]) < 60
    by_id = [sample(n, provenance={"prompt_id": "one problem"}) for n in range(50)]
    found = surveyed(rows(tmp_path / "ids", [*by_id, *several]), held_out=0.2)
    assert len([i for i in found.held_out if i < 50]) in (0, 50)


@pytest.mark.parametrize(("samples", "settings", "expected"), [
    ([], {}, "no samples to train on"),
    ([sample(1)], {"limit": 5}, "1 are longer than 5 tokens"),
    ([sample(1), sample(2, response="")], {}, r"samples\.jsonl:2: field 'response' is empty"),
])
def test_a_set_that_cannot_be_trained_on_is_refused(tmp_path: Path, samples: list[SampleRecord], settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        surveyed(rows(tmp_path, samples), **settings)


@pytest.mark.parametrize(("settings", "expected"), [
    ({"epochs": 0}, "epochs=0"), ({"batch_size": 0}, "batch_size=0"), ({"validation_fraction": 1.0}, "validation_fraction"),
    ({"template": TemplateConfig(response="x")}, r"template\.response"),
])
def test_impossible_settings_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        SFTConfig(**settings)


def test_micro_batches_too_small_for_the_longest_sample_are_refused(tmp_path: Path) -> None:
    config = SFTConfig(model=PluginChoice("qwen2", Qwen2Config(max_position_embeddings=128)), micro_batch_tokens=64)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="micro_batch_tokens=64 must be at least the longest sample, 128 tokens"):
        SFT(config)._survey(rows(tmp_path, [sample(1)]), SimpleNamespace(rank=0, world_size=1))  # type: ignore[arg-type]
