"""The CPU platform leaves the process's torch alone, adapts Megatron completely, and costs next to nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: the CPU platform is not used")

GLOBALS = """
import inspect, json, sys, types
import torch, torch.cuda, torch.distributed as dist
import r1mega.policy.policy  # Megatron and its own imports may load more of torch: what is compared starts after them
spaces = {"torch": torch, "torch.cuda": torch.cuda, "torch.Tensor": torch.Tensor, "torch.distributed": dist, "torch.nn.Module": torch.nn.Module}
def identities():
    return {f"{space}.{name}": id(inspect.getattr_static(owner, name)) for space, owner in spaces.items() for name in dir(owner)}
before = identities()
from r1mega.policy.platform import get_platform
get_platform()
sys.path.insert(0, sys.argv[1])
import policy_models as models
from r1mega.config import OptimizerConfig
policy = models.build(models.deepseek(mtp_num_layers=1), optimizer=OptimizerConfig())
batch = models.batch_of(models.sequences(20, 9))
policy.train_step([batch], models.likelihood)
policy.logprobs([batch])
after = identities()
changed = [name for name in before if after.get(name) != before[name]]
megatron = [(name, module) for name, module in list(sys.modules.items()) if name.startswith("megatron.core")]
compiled = [f"{name}.{key}" for name, module in megatron for key, value in vars(module).items()
            if isinstance(value, types.FunctionType) and "_torchdynamo_orig_callable" in vars(value)]
modes = torch.overrides._get_current_function_mode_stack()
print(json.dumps({"changed": changed, "compiled": compiled, "modes": len(modes)}))
try:
    torch.zeros(1).cuda()
except (RuntimeError, AssertionError):
    print("refused")
"""


def test_no_global_of_torch_changes() -> None:
    """Through building, training and scoring: vLLM and others in the process must see the real torch."""
    command = [sys.executable, "-W", "ignore", "-c", GLOBALS, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    report, last = done.stdout.strip().splitlines()[-2:]
    seen = json.loads(report)
    assert seen["changed"] == []
    assert seen["compiled"] == [], "Megatron still compiles these functions"
    assert seen["modes"] == 0, "a function mode sees every call of torch"
    assert last == "refused", "Tensor.cuda() must refuse as it does without the policy"


def test_its_share_of_a_train_step_is_under_three_percent(repo: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(repo / "launch/bench/platform_overhead.py"), "--steps", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    assert figures["calls"] > 100, "the platform's functions were not seen by the profiler"
    assert figures["share"] < 0.03, figures
