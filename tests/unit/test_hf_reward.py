"""Reward models as sequence classification models of one label, against transformers, and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import policy_models as models
import pytest
import torch
from hf_models import CASES, TOLERANCE, exported, transformers
from r1mega_plugins.models.llama import LLAMA
from r1mega_plugins.models.qwen3 import QWEN3
from safetensors.torch import load_file, save_file

from r1mega.config import ParallelConfig, PrecisionConfig
from r1mega.errors import ConfigError, R1MegaError, UserError
from r1mega.policy.architecture import Architecture
from r1mega.policy.hugging_face import parity
from r1mega.policy.hugging_face.family import Family
from r1mega.policy.hugging_face.load import load_published
from r1mega.policy.policy import Policy

EOS = 1


def reward_model(architecture: Architecture) -> Policy:
    policy = Policy(architecture, vocab_size=models.VOCAB, parallel=ParallelConfig(), precision=PrecisionConfig(), seed=1, reward_head="train")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in [*policy.chunks[0].named_parameters(), *policy.chunks[0].named_buffers()]:
            if name == "reward_head.weight" or (tensor.dim() == 1 and tensor.is_floating_point() and "tokens_per_expert" not in name):
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return policy


@pytest.mark.parametrize("case", CASES)
def test_transformers_gives_the_same_value_and_the_way_back_is_exact(case: str, tmp_path: Path) -> None:
    family, architecture = CASES[case]
    policy = reward_model(architecture)
    folder = exported(policy, family, tmp_path, eos_id=EOS)
    theirs, info = transformers.AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert type(theirs).__name__ == family.reward_class
    assert not any(info.values()), info
    assert theirs.config.num_labels == 1
    parts = [replace(part, tokens=part.tokens.copy()) for part in models.sequences(70, 23)]
    for part in parts:
        part.tokens[-1] = EOS  # as whatever is judged ends
    ours = policy.values([models.batch_of(parts)])[0][[69, 92]]
    with torch.no_grad():
        expected = torch.stack([theirs.eval()(torch.from_numpy(part.tokens)[None]).logits[0, 0] for part in parts])
    assert float((expected[0] - expected[1]).abs()) > 0.01, "the model must say something"
    assert float((ours - expected).abs().max()) <= TOLERANCE
    assert parity.check_logits(policy, folder, family, TOLERANCE) <= TOLERANCE

    saved = {name: tensor.clone() for name, tensor in policy.chunks[0].state_dict().items() if torch.is_tensor(tensor)}
    for tensor in policy.chunks[0].state_dict().values():
        if torch.is_tensor(tensor):
            tensor.fill_(7.0)
    load_published(policy, folder, family)
    for name, tensor in policy.chunks[0].state_dict().items():
        if name.startswith(("output_layer.", "mtp.")) and torch.is_tensor(tensor):
            assert (tensor == 7).all(), f"{name} is in no folder of a reward model"
        elif torch.is_tensor(tensor):
            rows = models.VOCAB if name == "embedding.word_embeddings.weight" else None
            assert torch.equal(tensor[:rows] if tensor.dim() else tensor, saved[name][:rows] if tensor.dim() else saved[name]), name


@pytest.fixture
def qwen3(tmp_path: Path) -> tuple[Policy, Path]:
    """A reward model and its export in one file."""
    policy = reward_model(models.gqa(qk_layernorm=True))
    return policy, exported(policy, QWEN3, tmp_path, eos_id=EOS, shard_bytes=10**9)


def test_a_padded_batch_is_refused_by_transformers_and_not_scored_a_token_early(qwen3: tuple[Policy, Path]) -> None:
    """With the end of sequence for padding, as is usual, it would take the value before the end of sequence."""
    config = json.loads((qwen3[1] / "config.json").read_text())
    assert (config["pad_token_id"], config["eos_token_id"]) == (None, EOS)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(qwen3[1])
    with pytest.raises(ValueError, match="no padding token"):
        model(torch.full((2, 3), EOS))


def test_one_kind_of_model_is_not_loaded_as_the_other(qwen3: tuple[Policy, Path], tmp_path: Path) -> None:
    reward, folder = qwen3
    policy = models.build(reward.architecture)
    with pytest.raises(UserError, match=r"it lacks: lm_head\.weight; it has besides: score\.weight"):
        load_published(policy, folder, QWEN3)
    with pytest.raises(UserError, match=r"it lacks: score\.weight; it has besides: lm_head\.weight"):
        load_published(reward, exported(policy, QWEN3, tmp_path / "policy"), QWEN3)


def test_another_value_fails_the_check(qwen3: tuple[Policy, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    policy, folder = qwen3
    path = folder / "model-00001-of-00001.safetensors"
    tensors = load_file(path)
    load = load_published

    def load_then_change(policy: Policy, folder: Path, family: Family) -> None:
        load(policy, folder, family)
        save_file(tensors | {"score.weight": tensors["score.weight"] + 0.01}, path, metadata={"format": "pt"})

    monkeypatch.setattr(parity, "load_published", load_then_change)
    with pytest.raises(R1MegaError, match="transformers computes other rewards: values at the last token differ by up to"):
        parity.check_logits(policy, folder, QWEN3, TOLERANCE)


def test_a_family_without_such_a_class_is_refused_by_name() -> None:
    for family, architecture in CASES.values():
        del architecture
        parity.require_reward_class(family)
    with pytest.raises(ConfigError, match="Llama 3 has no class for reward models beside LlamaLMHeadModel"):
        parity.require_reward_class(replace(LLAMA, causal_class="LlamaLMHeadModel"))
    with pytest.raises(ConfigError, match=r"transformers \S+ has no OtherForSequenceClassification: a reward model of the family Llama 3"):
        parity.require_reward_class(replace(LLAMA, causal_class="OtherForCausalLM"))
