"""Exported models against transformers, and back: every family's table, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import policy_models as models
import pytest
import torch
from hf_models import CASES, TOLERANCE, exported, our_logits, softmax_moe, their_model
from r1mega_plugins.models.deepseek_v3 import DEEPSEEK_V3
from r1mega_plugins.models.llama import LLAMA
from r1mega_plugins.models.qwen2 import QWEN2
from r1mega_plugins.models.qwen3 import QWEN3
from r1mega_plugins.models.qwen3_moe import QWEN3_MOE
from safetensors.torch import load_file, save_file

from r1mega.errors import ConfigError, DataError, R1MegaError, UserError
from r1mega.policy import artifact
from r1mega.policy.architecture import Architecture, MoE, Rope
from r1mega.policy.hugging_face.export import Export, check_written, export_weights
from r1mega.policy.hugging_face.family import Family, choose_family
from r1mega.policy.hugging_face.load import load_published
from r1mega.policy.hugging_face.mapping import map_tensors
from r1mega.policy.hugging_face.published import INDEX, plan_shards
from r1mega.policy.hugging_face.stored import StoredWeights
from r1mega.policy.policy import Policy


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_same_logits_and_the_way_back_is_exact(case: str, tmp_path: Path) -> None:
    family, architecture = CASES[case]
    policy = models.build(architecture)
    folder = exported(policy, choose_family((family,), architecture), tmp_path)
    tokens = torch.randint(0, models.VOCAB, (100,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = their_model(folder)(tokens[None]).logits[0]
    difference = (our_logits(policy, tokens) - theirs).abs().max()
    assert float(theirs.std()) > 0.1, "the model must say something"
    assert float(difference) <= TOLERANCE
    saved = {name: tensor.clone() for name, tensor in policy.chunks[0].state_dict().items() if torch.is_tensor(tensor)}
    for tensor in policy.chunks[0].state_dict().values():
        if torch.is_tensor(tensor):
            tensor.fill_(7.0)
    load_published(policy, folder, family)
    for name, tensor in policy.chunks[0].state_dict().items():
        if torch.is_tensor(tensor):
            padded = saved[name].clone()
            if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
                padded[models.VOCAB:] = 0
            assert torch.equal(tensor, padded), name


@pytest.fixture
def qwen3(tmp_path: Path) -> tuple[Policy, Path]:
    """A policy and its artifact."""
    policy = models.build(models.gqa(qk_layernorm=True))
    artifact.export_artifact(policy, tmp_path / "artifact")
    return policy, tmp_path / "artifact"


def test_shards_and_index(tmp_path: Path) -> None:
    """Files keep to their size, every name is in one of them, and the sizes add up."""
    folder = exported(models.build(models.deepseek()), DEEPSEEK_V3, tmp_path, shard_bytes=20_000)
    index = json.loads((folder / INDEX).read_text())
    files = sorted(folder.glob("*.safetensors"))
    held = [load_file(path) for path in files]
    assert {name: path.name for path, tensors in zip(files, held, strict=True) for name in tensors} == index["weight_map"]
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in held]
    assert sum(sizes) == index["metadata"]["total_size"]
    assert len(files) > 3
    assert all(size <= 20_000 or len(tensors) == 1 for size, tensors in zip(sizes, held, strict=True))
    assert [path.name for path in files] == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]


def test_a_cast_rounds_everything_but_the_expert_bias(tmp_path: Path) -> None:
    policy = models.build(models.deepseek())
    folder = exported(policy, DEEPSEEK_V3, tmp_path, dtype=torch.bfloat16)
    tensors = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    kept = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert kept == {"model.layers.1.mlp.gate.e_score_correction_bias"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.bfloat16}
    gate = policy.chunks[0].state_dict()["decoder.layers.0.mlp.linear_fc1.weight"].chunk(2)[0]
    assert torch.equal(tensors["model.layers.0.mlp.gate_proj.weight"], gate.bfloat16())
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert their_model(folder).dtype == torch.bfloat16


@pytest.mark.parametrize(("change", "message"), [
    ({"tied_embeddings": True}, r"Qwen3 does not have: output_layer\.weight"),
    ({"num_layers": 3}, r"decoder\.layers\.self_attention\.linear_qkv\.layer_norm_weight is \[2, 32\]"),
    ({"num_layers": 1}, r"has 2 entries, the model 1"),
    ({"kv_channels": 8}, r"decoder\.layers\.self_attention\.linear_qkv\.weight is \[2, 128, 32\]"),
])
def test_what_does_not_fit_the_table_is_named(qwen3: tuple[Policy, Path], change: dict[str, Any], message: str) -> None:
    architecture = models.gqa(qk_layernorm=True, **change)
    with pytest.raises(UserError, match=message):
        map_tensors(QWEN3, architecture, models.VOCAB, StoredWeights(qwen3[1]).shapes, "here")


def test_another_familys_table_does_not_fit(qwen3: tuple[Policy, Path]) -> None:
    message = r"it lacks: decoder\.layers\.0\.self_attention\.linear_qkv\.bias.* Qwen2 does not have: .*q_layernorm"
    with pytest.raises(UserError, match=message):
        map_tensors(QWEN2, models.gqa(add_qkv_bias=True), models.VOCAB, StoredWeights(qwen3[1]).shapes, "here")


def test_a_tied_release_may_repeat_its_embedding_as_a_head(tmp_path: Path) -> None:
    family, architecture = CASES["qwen2-tied"]
    policy = models.build(architecture)
    folder = exported(policy, family, tmp_path, shard_bytes=10**9)
    path = folder / "model-00001-of-00001.safetensors"
    (folder / INDEX).unlink()
    path.rename(path := folder / "model.safetensors")
    whole = load_file(path)
    embedding = whole["model.embed_tokens.weight"]
    save_file(whole | {"lm_head.weight": embedding.clone()}, path)
    load_published(policy, folder, family)
    save_file(whole | {"lm_head.weight": embedding + 1}, path)
    with pytest.raises(UserError, match=r"numbers differ: lm_head\.weight is no copy of model\.embed_tokens\.weight"):
        load_published(policy, folder, family)


def test_a_head_of_its_own_in_a_prediction_layer_is_refused(tmp_path: Path) -> None:
    family, architecture = CASES["deepseek-v3-yarn-prediction"]
    policy = models.build(architecture)
    folder = exported(policy, family, tmp_path, shard_bytes=10**9)
    path = folder / "model-00001-of-00001.safetensors"
    whole, name = load_file(path), "model.layers.2.shared_head.head.weight"
    save_file(whole | {name: whole[name][:3].clone()}, path)
    with pytest.raises(UserError, match=rf"numbers differ: {name} is no copy of lm_head\.weight"):
        load_published(policy, folder, family)


def test_a_written_file_that_differs_is_noticed_by_tensor(qwen3: tuple[Policy, Path], tmp_path: Path) -> None:
    policy, source = qwen3
    stored = StoredWeights(source)
    units = map_tensors(QWEN3, policy.architecture, models.VOCAB, stored.shapes, "here")
    shards, _ = plan_shards(units, lambda _: torch.float32, 10**9)
    folder = exported(policy, QWEN3, tmp_path, shard_bytes=10**9)
    check_written(folder, shards, shards, stored.read)
    path = folder / "model-00001-of-00001.safetensors"
    whole = load_file(path)
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file(whole | {name: whole[name].index_fill(0, torch.tensor([5]), 0.25)}, path)
    with pytest.raises(R1MegaError, match=rf"{name} differs from decoder\.layers\.self_attention\.linear_qkv\.weight\[1\] of the checkpoint"):
        check_written(folder, shards, shards, stored.read)
    save_file(whole | {"model.extra": torch.zeros(1)}, path)
    with pytest.raises(R1MegaError, match=r"model\.extra is not where it was planned"):
        check_written(folder, shards, shards, stored.read)
    for text, message in ((path.read_bytes()[:-40], "not a whole safetensors file"), (b"", "not a whole safetensors file")):
        path.write_bytes(text)
        with pytest.raises(DataError, match=message):
            check_written(folder, shards, shards, stored.read)
    path.unlink()
    with pytest.raises(DataError, match=r"model-00001-of-00001\.safetensors is missing"):
        check_written(folder, shards, shards, stored.read)


def test_a_failure_leaves_the_earlier_export_and_no_half_folder(qwen3: tuple[Policy, Path], tmp_path: Path) -> None:
    policy, source = qwen3
    export = Export(source, QWEN3, policy.architecture, models.VOCAB, eos_id=1)
    folder = tmp_path / "out" / "hf"

    def full_disk(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(R1MegaError, match="No space left"):
        export_weights(export, policy.ranks, folder, extra=full_disk, before_rename=lambda: None)
    assert list((tmp_path / "out").iterdir()) == []
    export_weights(export, policy.ranks, folder, extra=lambda path: (path / "mark").touch(), before_rename=lambda: None)
    with pytest.raises(R1MegaError, match="No space left"):
        export_weights(export, policy.ranks, folder, extra=full_disk, before_rename=lambda: None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["hf"]
    assert (folder / "mark").exists()


def test_loading_lists_all_that_is_wrong(qwen3: tuple[Policy, Path], tmp_path: Path) -> None:
    policy, _ = qwen3
    folder = exported(policy, QWEN3, tmp_path, shard_bytes=10**9)
    path = folder / "model-00001-of-00001.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    tensors |= {"model.layers.0.self_attn.q_norm.weight": torch.ones(3), "model.layers.0.self_attn.q_proj.bias": torch.ones(3)}
    (folder / INDEX).unlink()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks: model\.norm\.weight; it has besides: model\.layers\.0\.self_attn\.q_proj\.bias; shapes differ: "
                                        r"model\.layers\.0\.self_attn\.q_norm\.weight is \[3\] there and \[16\] here"):
        load_published(policy, folder, QWEN3)


@pytest.mark.parametrize(("families", "architecture", "message"), [
    ((LLAMA, QWEN2, QWEN3), models.gqa(qk_layernorm=True, add_qkv_bias=True), r"Llama 3: qk_layernorm=True, add_qkv_bias=True; Qwen2: qk_.*; Qwen3: add_"),
    ((QWEN2,), models.gqa(add_qkv_bias=True), r"kv_channels=16 \(it is always hidden_size / num_attention_heads\)"),
    ((QWEN3,), models.gqa(qk_layernorm=True, rope=Rope(llama3_scaling_factor=8.0)), r"rope\.llama3_scaling_factor=8\.0"),
    ((QWEN3,), models.gqa(qk_layernorm=True, rope=Rope("yarn")), r"rope\.rope_type=yarn"),
    ((QWEN3,), models.gqa(qk_layernorm=True, mtp_num_layers=1), r"mtp_num_layers=1"),
    ((QWEN3_MOE,), softmax_moe(moe_router_score_function="sigmoid"), r"moe\.moe_router_score_function=sigmoid"),
    ((QWEN3_MOE,), softmax_moe(moe_shared_expert_intermediate_size=16), r"moe\.moe_shared_expert_intermediate_size=16"),
    ((DEEPSEEK_V3,), models.gqa(), r"qk_layernorm=False, attention without mla, a model without experts"),
    ((DEEPSEEK_V3,), models.deepseek(moe=MoE(8, 16, 4, 16, moe_router_num_groups=4, moe_router_group_topk=1)), r"topk must be twice group_topk"),
    ((DEEPSEEK_V3,), models.deepseek(moe=MoE(8, 16, 2)), r"moe_shared_expert_intermediate_size=None"),
    ((DEEPSEEK_V3,), models.deepseek(moe=MoE(8, 16, 2, 16, moe_router_enable_expert_bias=False)), r"moe\.moe_router_enable_expert_bias=False"),
    ((), models.gqa(), r"declares no Hugging Face family"),
])
def test_what_no_family_expresses_is_refused_by_name(families: tuple[Family, ...], architecture: Architecture, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_family(families, architecture)
