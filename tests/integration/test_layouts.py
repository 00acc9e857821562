"""One model, many layouts: every layout computes what one process computes, in fp32 and on packed sequences.

The models: MLA + MoE + MTP, and GQA with tied embeddings. The layouts of one, two and four real processes are one launch each
(`ranks_layouts.py`). The shards of a layout are put together by their checkpoint metadata and compared with those of a single process:
||a - b|| / ||b|| for the loss, the gradient norm, every gradient, every weight after one SGD step, and the losses of 20 Adam steps through
the distributed optimizer.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launched import run_ranks

pytestmark = pytest.mark.timeout(600)  # the whole file takes about 90 s on two free cores
SCRIPT = Path(__file__).with_name("ranks_layouts.py")
TOLERANCE, ADAM_TOLERANCE = 1e-5, 1e-3

TP, PP, VPP, CP, EP, ETP, DP = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
                                "context_parallel_size", "expert_model_parallel_size", "expert_tensor_parallel_size", "data_parallel_size")
# name -> (layout, micro-batches of each replica). Expert parallelism lies across the tensor and data parallel ranks of a stage.
LAYOUTS: dict[str, tuple[dict[str, int], int]] = {
    "one": ({}, 1),
    "TP2": ({TP: 2}, 2),
    "PP2": ({PP: 2}, 3),
    "EP2": ({EP: 2, DP: 2}, 2),
    "DP2": ({DP: 2}, 2),
    "PP2xVPP2": ({PP: 2, VPP: 2}, 3),  # 3 is no multiple of 2: filled up with an empty one
    "PP3, 1 + 2 + 1 layers": ({PP: 3}, 4),
    "PP2, 3 + 1 layers": ({PP: 2, "pipeline_model_parallel_layout": "Et*3|tmL"}, 3),  # type: ignore[dict-item]
    "TP2xEP2": ({TP: 2, EP: 2}, 1),
    "TP2xPP2": ({TP: 2, PP: 2}, 2),
    "PP2xEP2": ({PP: 2, EP: 2, DP: 2}, 1),  # fewer micro-batches than stages
    "TP2xPP2xEP2": ({TP: 2, PP: 2, EP: 2}, 2),
    "ETP2xEP2": ({TP: 2, ETP: 2, EP: 2, DP: 2}, 1),
    "CP2": ({CP: 2}, 2),
    "CP2xEP2": ({CP: 2, EP: 2}, 1),
    "TP2xCP2": ({TP: 2, CP: 2}, 2),
    "PP2xCP2": ({PP: 2, CP: 2}, 3),
    "CP2xDP2": ({CP: 2, DP: 2}, 1),
    "CP4, tied GQA": ({CP: 4}, 1),
    "one, reward model": ({}, 1),
    "TP2xPP2, reward model": ({TP: 2, PP: 2}, 2),
    "CP2xDP2, reward model": ({CP: 2, DP: 2}, 1),
    "one, tied GQA": ({}, 1),
    "TP2xPP2, tied GQA": ({TP: 2, PP: 2}, 3),  # the first and the last stage share the embedding
}
REFERENCES = {"deepseek": "one", "reward": "one, reward model", "tied-gqa": "one, tied GQA"}


def _model(name: str) -> str:
    return "tied-gqa" if "tied GQA" in name else "reward" if "reward" in name else "deepseek"


def _world(name: str) -> int:
    sizes = LAYOUTS[name][0]
    return sizes.get(TP, 1) * sizes.get(PP, 1) * sizes.get(CP, 1) * sizes.get(DP, 1)


@functools.cache
def _launched(world: int) -> dict[str, list[Any]]:
    """What each rank saw, of every layout of this many processes: one launch, because importing takes longer than the work."""
    names = [name for name in LAYOUTS if _world(name) == world]
    layouts = [{"model": _model(name), "parallel": LAYOUTS[name][0], "micro_batches": LAYOUTS[name][1]} for name in names]
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.json"
        settings.write_text(json.dumps({"out": folder, "adam_steps": 20, "layouts": layouts}))
        run_ranks(world, [sys.executable, str(SCRIPT), str(settings)], settings.parent)
        return {name: [torch.load(settings.with_name(f"layout{number}-rank{rank}.pt"), weights_only=False) for rank in range(world)]
                for number, name in enumerate(names)}


@functools.cache
def observed(name: str) -> dict[str, Any]:
    """What the ranks of one layout saw, shards put together; made once and shared by the tests."""
    ranks = _launched(_world(name))[name]
    for key in ("loss", "grad_norm", "sums", "adam_losses"):
        assert all(rank[key] == ranks[0][key] for rank in ranks), f"{name}: the ranks disagree about {key}: {[rank[key] for rank in ranks]}"
    logprobs = {id_: values for rank in ranks if rank["lead"] for id_, values in rank["logprobs"].items()}
    whole = {key: _assemble([shard for rank in ranks for shard in rank[key]], f"{name} {key}")
             for key in ("initial", "gradients", "updated_weights")}
    return ranks[0] | whole | {"logprobs": logprobs}


def _assemble(shards: list[Any], what: str) -> dict[str, torch.Tensor]:
    """Whole tensors from shards. Ranks that hold the same part must hold the same values, and every element must be covered."""
    whole: dict[str, torch.Tensor] = {}
    for key, shape, offset, prepended, data in shards:
        tensor = whole.setdefault(key, torch.full(shape, float("nan"), dtype=torch.float64))
        sizes = [1] * prepended + list(data.shape)
        place = tuple(slice(start, start + size) for start, size in zip(offset, sizes, strict=True))
        there, new = tensor[place], data.double().view(sizes)
        if not there.isnan().all():
            assert _distance(new, there) <= 1e-6, f"{what}: {key} differs between ranks that hold the same part, by {_distance(new, there):.1e}"
        tensor[place] = new
    for key, tensor in whole.items():
        assert not tensor.isnan().any(), f"{what}: no rank holds all of {key}, or it is not a number"
    return whole


def _distance(a: Any, b: Any) -> float:
    """||a - b|| / ||b||."""
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    difference, size = float((a - b).norm()), float(b.norm())
    return difference / size if size else difference


def _worst(a: dict[str, Any], b: dict[str, Any]) -> tuple[float, str]:
    assert a.keys() == b.keys(), f"not the same tensors: {sorted(a.keys() ^ b.keys())}"
    return max((_distance(a[key], b[key]), key) for key in b)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in REFERENCES.values()])
def test_layout_computes_what_one_process_computes(layout: str, record_property: Any) -> None:
    here, one = observed(layout), observed(REFERENCES[_model(layout)])
    for key in one["initial"]:
        assert torch.equal(here["initial"][key], one["initial"][key]), f"{layout}: the initial {key} is another one"
    figures = {
        "log-probs and entropy": _worst(here["logprobs"], one["logprobs"]), "loss": (_distance(here["loss"], one["loss"]), ""),
        "sums": _worst(here["sums"], one["sums"]), "gradient norm": (_distance(here["grad_norm"], one["grad_norm"]), ""),
        "gradients": _worst(here["gradients"], one["gradients"]), "weights": _worst(here["updated_weights"], one["updated_weights"]),
    }
    record_property("figures", {name: value for name, (value, _) in figures.items()})
    print(layout, {name: f"{value:.1e} {key}" for name, (value, key) in figures.items()})
    for name, (value, key) in figures.items():
        assert value <= TOLERANCE, f"{layout}: {name} {key} differs from one process by {value:.1e}"
    adam = max(_distance(a, b) for a, b in zip(here["adam_losses"], one["adam_losses"], strict=True))
    print(layout, f"Adam losses {adam:.1e}")
    assert adam <= ADAM_TOLERANCE, f"{layout}: 20 Adam steps differ by {adam:.1e}: {here['adam_losses']} against {one['adam_losses']}"


@pytest.mark.parametrize("layout", ["DP2", "CP2xDP2"])
def test_replicas_may_report_different_metrics(layout: str) -> None:
    """As where one replica's micro-batches are padding alone."""
    metrics = observed(layout)["metrics"]
    count = LAYOUTS[layout][1]
    assert {name: value for name, value in metrics.items() if name.startswith("replica")} == {"replica0": count, "replica1": count}


@pytest.mark.parametrize("name", REFERENCES.values())
def test_the_reference_is_not_trivial(name: str) -> None:
    """The single process learns, every weight has a gradient, and one SGD step moves every weight it should."""
    one = observed(name)
    assert len(one["gradients"]) > 10, "too few tensors: the comparison would be empty"
    assert one["adam_losses"][-1] < one["adam_losses"][0] - 0.3, "20 Adam steps learned nothing"
    assert max(one["adam_norms"]) > 1.0, "gradient clipping was never active"
    still = [key for key, value in one["gradients"].items() if not value.any()]
    assert not still, f"no gradient reaches {still}"
    assert all(np.isfinite(values).all() and ("reward" in name or (values[0, 1:] < 0).all()) for values in one["logprobs"].values())
    moved = {key for key, value in one["updated_weights"].items() if not torch.equal(value, one["initial"][key])}
    assert moved == set(one["gradients"]), f"not moved by SGD: {sorted(set(one['gradients']) - moved)}"
    biases = [key for key in one["initial"] if key.endswith("expert_bias")]
    assert len(biases) == (4 if name == "one" else 0)
    assert not moved & set(biases), "the expert bias is frozen unless asked"
