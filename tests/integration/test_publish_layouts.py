"""On every layout each rank receives the bytes that a one-process export writes; a receiver that fails is known to all ranks, and none waits for it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import ranks_publish
import torch
from megatron.core import parallel_state
from safetensors.torch import load_file

from r1mega.config import ParallelConfig
from r1mega.policy import artifact
from r1mega.policy.hugging_face.export import Export, export_weights

pytestmark = pytest.mark.timeout(300)  # the whole file takes about a minute on two free cores
TP, PP, VPP, EP, ETP, DP = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
                            "expert_model_parallel_size", "expert_tensor_parallel_size", "data_parallel_size")
LAYOUTS: dict[str, tuple[str, dict[str, int]]] = {
    "TP2": ("deepseek", {TP: 2}), "PP2": ("deepseek", {PP: 2}), "PP2xVPP2": ("deepseek", {PP: 2, VPP: 2}),
    "TP2, tied": ("tied-gqa", {TP: 2}), "PP2, tied": ("tied-gqa", {PP: 2}),
    "ETP2xEP2": ("deepseek", {TP: 2, ETP: 2, EP: 2, DP: 2}),
    "TP2xPP2xEP2xDP2": ("deepseek", {TP: 2, PP: 2, EP: 2, DP: 2}), "TP2xPP2xDP2, tied": ("tied-gqa", {TP: 2, PP: 2, DP: 2}),
}


def world(name: str) -> int:
    sizes = LAYOUTS[name][1]
    return sizes.get(TP, 1) * sizes.get(PP, 1) * sizes.get(DP, 1)


@functools.cache
def launched(ranks: int) -> dict[str, list[Any]]:
    """What each rank saw, of every layout of this many processes: one launch, because importing takes longer than the work."""
    names = [name for name in LAYOUTS if world(name) == ranks]
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.json"
        layouts = [{"model": LAYOUTS[name][0], "parallel": LAYOUTS[name][1]} for name in names]
        settings.write_text(json.dumps({"out": folder, "layouts": layouts}))
        command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), ranks_publish.__file__,
                   str(settings)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return {name: [torch.load(settings.with_name(f"layout{number}-rank{rank}.pt"), weights_only=False) for rank in range(ranks)]
                for number, name in enumerate(names)}


@functools.cache
def exported(model: str) -> dict[str, torch.Tensor]:
    """The files that one process writes of the same policy, without the copies that an export repeats."""
    policy = ranks_publish.build(model, ParallelConfig())
    with tempfile.TemporaryDirectory() as folder:
        artifact.export_artifact(policy, Path(folder) / "artifact")
        export = Export(Path(folder) / "artifact", ranks_publish.FAMILIES[model], policy.architecture, ranks_publish.VOCAB, eos_id=1)
        export_weights(export, policy.ranks, Path(folder) / "hf", before_rename=lambda: None)
        tensors = load_file(Path(folder) / "hf" / "model-00001-of-00001.safetensors")
    parallel_state.destroy_model_parallel()
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(("shared_head.head.weight", ".4.embed_tokens.weight"))}


def require_same(found: dict[str, torch.Tensor], model: str, what: str) -> None:
    wanted = exported(model)
    assert found.keys() == wanted.keys(), what
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (wanted[name].dtype, wanted[name].shape), f"{what}: {name}"
        assert torch.equal(tensor.view(torch.uint8), wanted[name].view(torch.uint8)), f"{what}: {name} has other bytes than the export of one process"


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_rank_receives_what_one_process_exports(name: str) -> None:
    model, ranks = LAYOUTS[name][0], launched(world(name))[name]
    for rank, seen in enumerate(ranks):
        require_same(seen["tensors"], model, f"{name}, rank {rank}")
        assert seen["published"] == ranks[0]["published"]
        assert seen["published"]["tensors"] == len(exported(model))
        assert seen["first_alone"]["published"] == ranks[0]["published"], f"{name}: the checksum of the same weights is another one"
    require_same(ranks[0]["first_alone"]["tensors"], model, f"{name}, rank 0 alone")
    assert not any(seen["first_alone"]["tensors"] for seen in ranks[1:])
    assert bool(ranks[0]["assembled"]) == (TP in LAYOUTS[name][1]), "only tensor parallelism divides tensors"
    assert ranks[0]["direct"], "no bucket has one sender"


def test_the_checksum_of_a_pass_does_not_depend_on_the_layout() -> None:
    """Nor on the number of processes: it is of the content."""
    seen = {name: launched(world(name))[name][0]["published"] for name in LAYOUTS}
    for model in ranks_publish.FAMILIES:
        assert len({published["checksum"] for name, published in seen.items() if LAYOUTS[name][0] == model}) == 1


@pytest.mark.parametrize("name", ["PP2xVPP2", "TP2xPP2xEP2xDP2"])
def test_a_receiver_that_fails_on_one_rank_fails_on_all(name: str) -> None:
    """And the pass after it, which the first test compares, is whole."""
    last = world(name) - 1
    assert [seen["failed"] for seen in launched(world(name))[name]] == [
        f"version 0 of the weights was not received: ValueError: the engine of rank {last} is gone"] * (last + 1)
