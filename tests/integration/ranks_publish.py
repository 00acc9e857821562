"""One rank of test_publish_layouts.py: publishes the policy on one layout after another and keeps what it received. Not a test itself.

    python ranks_publish.py <settings.json>      {out, layouts: [{model, parallel}]}; started by torchrun
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.utils import nested_values
from r1mega_plugins.models.deepseek_v3 import DEEPSEEK_V3
from r1mega_plugins.models.qwen3 import QWEN3
from ranks_layouts import ARCHITECTURES, VOCAB

from r1mega.config import OptimizerConfig, ParallelConfig, PrecisionConfig
from r1mega.errors import R1MegaError
from r1mega.policy.hugging_face.publish import Bucket, Publisher
from r1mega.policy.keys import model_state
from r1mega.policy.policy import Policy
from r1mega.recipe.worker import leave

FAMILIES = {"deepseek": DEEPSEEK_V3, "tied-gqa": QWEN3}
MODELS = ARCHITECTURES | {"tied-gqa": replace(ARCHITECTURES["tied-gqa"], add_qkv_bias=False)}  # no family has both, norms and biases
BUCKET_BYTES = 20_000


def build(model: str, parallel: ParallelConfig) -> Policy:
    """The same weights on every layout, with norms and biases that are not all one or zero."""
    policy = Policy(MODELS[model], vocab_size=VOCAB, parallel=parallel, precision=PrecisionConfig(), seed=5, optimizer=OptimizerConfig(),
                    training_steps=1)
    for shard in nested_values(model_state(policy)):
        if isinstance(shard, ShardedTensor) and shard.data.dim() == 1:
            *lead, start = shard.global_offset
            seed = int.from_bytes(hashlib.sha256(f"{shard.key}{lead}".encode()).digest()[:4])
            whole = torch.randn(shard.global_shape[-1], generator=torch.Generator().manual_seed(seed))
            shard.data.detach().copy_(whole[start: start + len(shard.data)])
    return policy


def receive_all(publisher: Publisher) -> dict[str, Any]:
    """One pass whose receiver verifies and copies."""
    tensors: dict[str, torch.Tensor] = {}

    def receive(bucket: Bucket) -> None:
        bucket.verify()
        tensors.update((name, tensor.clone()) for name, tensor in bucket.tensors)

    return {"published": vars(publisher.publish(receive if publisher.receives else None)), "tensors": tensors}


def fail_on(rank: int, policy: Policy, publisher: Publisher) -> str:
    """What this rank is told when the receiver of `rank` fails."""
    def receive(bucket: Bucket) -> None:
        if policy.ranks.rank == rank and bucket.index == 1:
            raise ValueError(f"the engine of rank {rank} is gone")

    try:
        publisher.publish(receive)
    except R1MegaError as error:
        return str(error)
    return ""


def observe(model: str, parallel: ParallelConfig) -> dict[str, Any]:
    policy = build(model, parallel)
    publisher = Publisher(policy, FAMILIES[model], bucket_bytes=BUCKET_BYTES)
    failed = fail_on(policy.ranks.world_size - 1, policy, publisher)
    seen = receive_all(publisher)
    first_alone = receive_all(Publisher(policy, FAMILIES[model], bucket_bytes=BUCKET_BYTES, everyone=False))
    assembled = sum(plan.assembled for plan in publisher.plans)
    return seen | {"failed": failed, "first_alone": first_alone, "assembled": assembled, "direct": len(publisher.plans) - assembled}


def main(settings: dict[str, Any]) -> None:
    for number, layout in enumerate(settings["layouts"]):
        seen = observe(layout["model"], ParallelConfig(**layout["parallel"]))
        torch.save(seen, Path(settings["out"]) / f"layout{number}-rank{torch.distributed.get_rank()}.pt")
        parallel_state.destroy_model_parallel()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(200, exit=True)
    torch.set_num_threads(1)
    main(json.loads(Path(sys.argv[1]).read_text()))
    faulthandler.cancel_dump_traceback_later()
    leave(0)
