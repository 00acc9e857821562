"""Checkpoints that transformers made, on every layout: the same logits, and an export with the same bits.

The oracle is transformers 5 with eager attention. Each world size is one launch of real processes (`ranks_hf.py`), which loads one model after another.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import hf_checkpoints as hf
import pytest
import torch
from launched import run_ranks

pytestmark = pytest.mark.timeout(600)
SCRIPT = Path(__file__).with_name("ranks_hf.py")
TOLERANCE = 1e-5
TP, PP, VPP, EP, ETP, DP = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
                            "expert_model_parallel_size", "expert_tensor_parallel_size", "data_parallel_size")
LAYOUTS: dict[str, dict[str, int]] = {
    "one": {}, "TP2": {TP: 2}, "PP2": {PP: 2}, "PP2xVPP2": {PP: 2, VPP: 2}, "EP2": {EP: 2, DP: 2}, "TP2xEP2": {TP: 2, EP: 2},
    "TP2xPP2": {TP: 2, PP: 2}, "TP2xPP2xEP2": {TP: 2, PP: 2, EP: 2}, "ETP2xEP2": {TP: 2, ETP: 2, EP: 2, DP: 2}}
_WITHOUT_EXPERTS = ("one", "TP2", "PP2", "PP2xVPP2", "TP2xPP2")
_WITH_EXPERTS = ("one", "TP2", "PP2", "PP2xVPP2", "EP2", "TP2xEP2", "TP2xPP2xEP2", "ETP2xEP2")
CASES = [(name, layout) for name in hf.MODELS for layout in (_WITH_EXPERTS if name in hf.EXPERTS else _WITHOUT_EXPERTS)]
HALF = [("qwen2", "one"), ("qwen3-moe", "TP2xPP2xEP2"), ("deepseek-v3-yarn-mtp", "one"), ("deepseek-v3-yarn-mtp", "TP2xPP2xEP2")]


def _world(layout: str) -> int:
    sizes = LAYOUTS[layout]
    return sizes.get(TP, 1) * sizes.get(PP, 1) * sizes.get(DP, 1)


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()  # as long as the tests run


@functools.cache
def _source(name: str, dtype: str) -> tuple[Path, torch.Tensor]:
    """A model's folder and transformers' logits with the weights as they are stored, computed in fp32."""
    folder = Path(_root().name) / f"{name}-{dtype}"
    if dtype == "fp32":
        return folder, hf.make(name, folder)
    from safetensors.torch import save_file

    hf.make(name, folder)
    stored = {key: tensor if "e_score" in key else tensor.bfloat16() for key, tensor in hf.tensors(folder).items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, hf.logits(folder)


@functools.cache
def _launched(world: int, dtype: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What the processes of one world size computed."""
    cases = [case for case in (CASES if dtype == "fp32" else HALF) if _world(case[1]) == world]
    out = Path(_root().name) / f"out-{world}-{dtype}"
    out.mkdir()
    runs = [{"name": name, "folder": str(_source(name, dtype)[0]), "parallel": LAYOUTS[layout], "dtype": dtype, "export": True} for name, layout in cases]
    (out / "settings.json").write_text(json.dumps({"out": str(out), "runs": runs}))
    run_ranks(world, [sys.executable, str(SCRIPT), str(out / "settings.json")], out)
    return {case: torch.load(out / f"run{number}.pt", weights_only=False) for number, case in enumerate(cases)}


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_the_layout_computes_transformers_logits_and_exports_the_same_bits(name: str, layout: str) -> None:
    folder, theirs = _source(name, "fp32")
    found = _launched(_world(layout), "fp32")[name, layout]
    assert float(theirs.std()) > 0.2, "the model must say something"
    assert float((found["logits"] - theirs).abs().max()) <= TOLERANCE
    _same_bits(folder, found["export"])
    if _world(layout) == max(_world(other) for case, other in CASES if case == name):  # the bits are the same everywhere, so once is enough
        assert torch.equal(hf.logits(found["export"]), theirs), "transformers computes something else with the export"


@pytest.mark.parametrize(("name", "layout"), HALF)
def test_bf16_is_as_close_to_the_truth_as_transformers_in_bf16(name: str, layout: str) -> None:
    """Both round every matrix product to 8 bits of mantissa, at places of their own. So the measure is transformers' own distance from its result in
    fp32 with the same weights: ours may be up to twice that, in the mean over all logits."""
    folder, exact = _source(name, "bf16")
    found = _launched(_world(layout), "bf16")[name, layout]
    rounding = float((hf.logits(folder, torch.bfloat16) - exact).abs().mean())
    assert rounding > 1e-3, "bf16 must differ from fp32 for this test to say anything"
    assert float((found["logits"] - exact).abs().mean()) <= 2 * rounding
    _same_bits(folder, found["export"])


def _same_bits(source: Path, export: Path) -> None:
    theirs, ours = hf.tensors(source), hf.tensors(export)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name
