"""FP8 checkpoints with block scales, as DeepSeek-V3 is released, against dequantisation of the whole tensors by plain torch, and against transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import policy_models as models
import pytest
import torch
from hf_models import TOLERANCE, exported, our_logits, their_model
from r1mega_plugins.models.deepseek_v3 import DEEPSEEK_V3
from safetensors.torch import load_file, save_file

from r1mega.errors import ConfigError, DataError, UserError
from r1mega.policy.hugging_face import tensor_file
from r1mega.policy.hugging_face.load import load_published
from r1mega.policy.hugging_face.mapping import Part, Unit
from r1mega.policy.hugging_face.published import INDEX, SINGLE, PublishedWeights
from r1mega.policy.policy import Policy

Tensors = dict[str, torch.Tensor]
NAME = "model.layers.1.self_attn.o_proj.weight"
SCALE = NAME + "_scale_inv"


def rewrite(folder: Path, tensors: Tensors) -> None:
    """Replace a folder's weights by one file."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file(tensors, folder / SINGLE)


def configure(folder: Path, **quantization: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    given = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 8]} | quantization
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": given}))


def quantised(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(FP8, scales, dequantised): each block's largest number becomes FP8's largest, 448."""
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // block[0]), -(-columns // block[1]))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            scales[i, j] = weight[i * block[0]:(i + 1) * block[0], j * block[1]:(j + 1) * block[1]].abs().max() / 448
    wide = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :columns]
    small = (weight / wide).to(torch.float8_e4m3fn)
    return small, scales, small.float() * wide


def release(folder: Path, block: tuple[int, int]) -> Tensors:
    """Make an exported folder what a release is: the layers' matrices in FP8 but for the router. Returns the dequantised tensors."""
    stored: Tensors = {}
    dequantised: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            stored[name] = dequantised[name] = tensor
            if ".layers." in name and tensor.dim() == 2 and not name.endswith("mlp.gate.weight"):
                stored[name], stored[name + "_scale_inv"], dequantised[name] = quantised(tensor, block)
    rewrite(folder, stored)
    configure(folder, weight_block_size=list(block))
    return dequantised


def weights_of(policy: Policy) -> Tensors:
    return {name: tensor.clone() for name, tensor in policy.chunks[0].state_dict().items() if torch.is_tensor(tensor)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Path]:
    """A policy and its export."""
    policy = models.build(models.deepseek())
    return policy, exported(policy, DEEPSEEK_V3, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def folder(plain: tuple[Policy, Path], tmp_path: Path) -> Path:
    """A copy of the export, in FP8 with blocks of 16 x 8."""
    shutil.copytree(plain[1], tmp_path / "fp8")
    release(tmp_path / "fp8", (16, 8))
    return tmp_path / "fp8"


@pytest.mark.parametrize("block", [(16, 8), (24, 5), (128, 128)])
def test_a_release_in_fp8_is_the_model_that_its_dequantised_weights_are(block: tuple[int, int], plain: tuple[Policy, Path], tmp_path: Path) -> None:
    policy, source = plain
    fp8, reference = (Path(shutil.copytree(source, tmp_path / name)) for name in ("fp8", "reference"))
    rewrite(reference, release(fp8, block))
    load_published(policy, reference, DEEPSEEK_V3)
    expected = weights_of(policy)
    with torch.no_grad():
        for parameter in policy.chunks[0].parameters():
            parameter.fill_(7.0)
    load_published(policy, fp8, DEEPSEEK_V3)
    for name, tensor in weights_of(policy).items():
        assert torch.equal(tensor, expected[name]), name
    tokens = torch.randint(0, models.VOCAB, (100,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = their_model(reference)(tokens[None]).logits[0]
    assert float((our_logits(policy, tokens) - theirs).abs().max()) <= TOLERANCE


def test_any_region_of_any_parts_is_dequantised_with_its_own_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two matrices with ragged last blocks under each other, the second in two ranges with the places changed; read a few rows at a time."""
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(rows, 45, generator=generator) * torch.linspace(0.1, 30, rows)[:, None] for rows in (37, 50))
    a, b = (quantised(weight, (16, 8)) for weight in (first, second))
    save_file({"a": a[0], "a_scale_inv": a[1], "b": b[0], "b_scale_inv": b[1]}, tmp_path / SINGLE)
    unit = Unit("ours", (), (90, 45), (Part("a", ((0, 37),)), Part("b", ((60, 87), (37, 60)))))
    whole = torch.cat([a[2], b[2][27:], b[2][:27], torch.zeros(3, 45)])
    monkeypatch.setattr(tensor_file, "PIECE", 7 * 45)
    weights = PublishedWeights(tmp_path, (16, 8))
    assert weights.names == {"a", "b"}
    assert torch.equal(weights.tensor("b"), b[2])
    for start, stop, left, right in ((0, 90, 0, 45), (3, 5, 1, 2), (15, 17, 7, 9), (36, 38, 40, 45), (30, 88, 13, 31), (88, 90, 4, 5), (59, 61, 44, 45)):
        found = weights.region(unit, start, stop, slice(left, right))
        assert found.dtype == torch.float32
        assert torch.equal(found, whole[start:stop, left:right]), (start, stop, left, right)


def test_bf16_becomes_fp32_exactly(tmp_path: Path) -> None:
    policy = models.build(models.deepseek())
    folder = exported(policy, DEEPSEEK_V3, tmp_path, dtype=torch.bfloat16)
    before = weights_of(policy)
    load_published(policy, folder, DEEPSEEK_V3)
    for name, tensor in weights_of(policy).items():
        exact = before[name] if name.endswith("expert_bias") or not tensor.is_floating_point() else before[name].bfloat16().float()
        if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            exact[models.VOCAB:] = 0
        assert torch.equal(tensor, exact), name


@pytest.mark.parametrize(("quantization", "message"), [
    ({"quant_method": "gptq"}, r"config\.json: quantization_config\.quant_method=gptq: .* only quant_method=fp8"),
    ({"fmt": "e5m2"}, r"quantization_config\.fmt=e5m2"),
    ({"activation_scheme": "static"}, r"quantization_config\.activation_scheme=static"),
    ({"weight_block_size": None}, r"quantization_config\.weight_block_size=None: expected a block's rows and columns"),
    ({"weight_block_size": [16, 0]}, r"quantization_config\.weight_block_size=\[16, 0\]"),
])
def test_another_quantisation_is_refused_by_name(folder: Path, quantization: dict[str, Any], message: str) -> None:
    configure(folder, **quantization)
    with pytest.raises(ConfigError, match=message):
        PublishedWeights(folder)


@pytest.mark.parametrize(("change", "message"), [
    ({SCALE: None}, rf"{NAME} is FP8 and {SCALE} is not there"),
    ({SCALE: torch.ones(3, 3)}, rf"{SCALE} is F32 \[3, 3\], expected F32 \[2, 6\]"),
    ({SCALE: torch.ones(2, 6, dtype=torch.bfloat16)}, rf"{SCALE} is BF16 \[2, 6\], expected F32"),
    ({NAME: torch.ones(32, dtype=torch.float8_e4m3fn)}, rf"{NAME} is FP8 and no matrix"),
    ({NAME: torch.ones(32, 48, dtype=torch.float8_e5m2)}, rf"{NAME} is F8_E5M2; weights are read from F64, F32, F16, BF16, F8_E4M3"),
    ({NAME: torch.ones(32, 48, dtype=torch.int8)}, rf"{NAME} is I8;"),
])
def test_what_does_not_belong_together_is_refused_by_tensor(folder: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    rewrite(folder, {name: tensor for name, tensor in (load_file(folder / SINGLE) | change).items() if tensor is not None})
    with pytest.raises(DataError, match=message):
        PublishedWeights(folder)


@pytest.mark.parametrize(("change", "message"), [
    ({"model.layers.1.mlp.gone_proj.weight_scale_inv": torch.ones(2, 6)}, r"it has besides: model\.layers\.1\.mlp\.gone_proj\.weight_scale_inv\."),
    ({NAME: torch.ones(32, 48)}, rf"it has besides: {SCALE}\."),
])
def test_a_scale_of_no_weight_in_fp8_is_reported(folder: Path, plain: tuple[Policy, Path], change: Tensors, message: str) -> None:
    rewrite(folder, load_file(folder / SINGLE) | change)
    with pytest.raises(UserError, match=message):
        load_published(plain[0], folder, DEEPSEEK_V3)


def test_a_file_that_the_index_does_not_name_in_full_still_gives_its_tensors(folder: Path, plain: tuple[Policy, Path]) -> None:
    """Names that only the files have are known, so that all that is wrong is told at once."""
    tensors = load_file(folder / SINGLE)
    (folder / INDEX).write_text(json.dumps({"weight_map": {name: SINGLE for name in tensors if name != NAME}}))
    load_published(plain[0], folder, DEEPSEEK_V3)
