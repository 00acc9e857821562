"""In every layout the generator's log-probs are the trainer's, and the samples are those of one process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LAYOUTS = {
    "tp2": {"tensor_model_parallel_size": 2},
    "pp2": {"pipeline_model_parallel_size": 2},
    "pp2_vpp2": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    "ep2": {"expert_model_parallel_size": 2, "data_parallel_size": 2},
    "dp2": {"data_parallel_size": 2},
    "tp2_pp2": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    "pp2_ep2": {"pipeline_model_parallel_size": 2, "expert_model_parallel_size": 2, "data_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
    "pp2_cp2_ep2": {"pipeline_model_parallel_size": 2, "context_parallel_size": 2, "expert_model_parallel_size": 2},
    "tp2_pp2_ep2": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "expert_model_parallel_size": 2},
}


def generate(model: str, layout: dict[str, int]) -> dict[str, Any]:
    ranks = math.prod(layout.get(f"{name}_parallel_size", 1) for name in ("tensor_model", "pipeline_model", "context", "data"))
    script = Path(__file__).parent / "ranks_generate.py"
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), str(script), model,
               json.dumps(layout)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).removeprefix("RESULT"))
    return result


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return generate("moe", {})


@pytest.mark.parametrize("name", LAYOUTS)
def test_generator_equals_trainer(name: str, alone: dict[str, Any]) -> None:
    """Issue's limit: 1e-4 in fp32. MLA, experts, fewer slots than requests, unequal prompts and lengths."""
    result = generate("moe", LAYOUTS[name])
    assert result["worst"] <= 1e-4, result
    assert alone["worst"] <= 1e-4, alone
    assert result["count"] == 24
    assert result["digest"] == alone["digest"], "a sample depends on the layout that made it"


@pytest.mark.parametrize("name", ["tp2", "pp2_vpp2"])
def test_dense_model(name: str) -> None:
    result = generate("dense", LAYOUTS[name])
    assert result["worst"] <= 1e-4, result
    assert result["digest"] == generate("dense", {})["digest"]
