"""One rank of test_layouts.py: builds the policy on one layout after another, trains on fixed samples, writes what it saw. Not a test itself.

    python ranks_layouts.py <settings.json>      {out, adam_steps, layouts: [{model, parallel, micro_batches}]}; the rank is in the environment

Every rank writes its shards of each tensor with their global place, as Megatron's checkpoint metadata gives it; the test puts them together.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.utils import nested_values

from r1mega.config import OptimizerConfig, ParallelConfig, PrecisionConfig
from r1mega.policy.architecture import MLA, Architecture, MoE
from r1mega.policy.build import TrainingTerms
from r1mega.policy.policy import Policy
from r1mega.recipe.worker import leave
from r1mega.rollout.batching import make_microbatch, unpack
from r1mega.types import MicroBatch, TrainSequence

VOCAB = 100
LENGTHS = (7, 20, 13, 30, 3, 25, 9, 16, 11)
COMMON: dict[str, Any] = {"num_layers": 4, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64,
                          "qk_layernorm": True, "init_method_std": 0.05}
ARCHITECTURES = {
    "deepseek": Architecture(
        **COMMON, mtp_num_layers=1, mla=MLA(kv_lora_rank=16, qk_head_dim=8, qk_pos_emb_head_dim=4, v_head_dim=8, q_lora_rank=16),
        moe=MoE(num_moe_experts=4, moe_ffn_hidden_size=32, moe_router_topk=2, moe_shared_expert_intermediate_size=32, moe_router_num_groups=2,
                moe_router_group_topk=1, moe_router_topk_scaling_factor=2.5)),
    "reward": Architecture(**COMMON, num_query_groups=2),
    "tied-gqa": Architecture(**COMMON, num_query_groups=2, kv_channels=16, add_qkv_bias=True, tied_embeddings=True),
}
Shard = tuple[str, tuple[int, ...], tuple[int, ...], int, torch.Tensor]  # key, whole shape, offset, leading axes that the data lacks, data


def samples() -> list[TrainSequence]:
    """The step's sequences: a prompt of weight 0 each, then tokens whose weights differ in size and sign, as advantages do."""
    rng = np.random.default_rng(3)
    found = []
    for index, length in enumerate(LENGTHS):
        weights = rng.normal(0.5, 1.0, length).astype(np.float32)
        weights[: length // 4] = 0
        found.append(TrainSequence(str(index), rng.integers(0, VOCAB, length), weights))
    return found


def loss_fn(logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A weighted likelihood with an entropy bonus: both outputs of the policy carry gradients."""
    seen = (batch.weights > 0).float()
    return -(logprobs * batch.weights).sum() - 0.1 * (entropy * seen).sum(), {"entropy": (entropy * seen).sum()}


def reward_loss(values: torch.Tensor, entropy: None, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of a reward model: every token's value counts, so that every path to the scalar head carries gradients."""
    assert entropy is None
    return (torch.nn.functional.softplus(-20 * values * batch.weights.sign()) * (batch.weights != 0)).sum(), {}


def build(model: str, parallel: ParallelConfig, optimizer: OptimizerConfig) -> Policy:
    architecture = ARCHITECTURES[model]
    terms = TrainingTerms(moe_aux_loss_coeff=0.05 if architecture.moe else 0.0, mtp_loss_scaling_factor=0.3 if architecture.mtp_num_layers else 0.0,
                          mtp_detach=False)
    policy = Policy(architecture, vocab_size=VOCAB, parallel=parallel, precision=PrecisionConfig(), seed=5, optimizer=optimizer,
                    training_steps=100, terms=terms, reward_head="train" if model == "reward" else "none", timeout_minutes=2)
    for chunk in policy.chunks:
        for name, buffer in chunk.named_buffers():
            if name.endswith("expert_bias"):  # not all zero, so that it takes part in the routing
                buffer.copy_(torch.linspace(-0.02, 0.02, len(buffer)).roll(1))
    return policy


def micro_batches(policy: Policy, count: int) -> tuple[list[list[TrainSequence]], list[MicroBatch]]:
    mine = samples()[policy.ranks.dp_rank :: policy.ranks.dp_size]
    split = [mine[index::count] for index in range(count)]
    return split, [make_microbatch(part, policy.pad_multiple) for part in split]


def shards(policy: Policy) -> list[Shard]:
    found: list[Shard] = []
    for chunk in policy.chunks:
        sharded = chunk.sharded_state_dict(prefix="", metadata={})
        apply_factories(sharded)
        found += [(t.key, tuple(t.global_shape), tuple(t.global_offset), t.prepend_axis_num, t.data.detach().clone())
                  for t in nested_values(sharded) if isinstance(t, ShardedTensor) and t.data is not None]
    return found


@contextlib.contextmanager
def gradients_as_weights(policy: Policy) -> Iterator[None]:
    """Lets the checkpoint metadata of the weights describe their gradients."""
    parameters = [parameter for chunk in policy.chunks for parameter in chunk.parameters() if parameter.requires_grad]
    kept = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.main_grad
    try:
        yield
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data


def logprobs_by_id(policy: Policy, split: list[list[TrainSequence]], batches: list[MicroBatch]) -> dict[str, Any]:
    if policy.reward_head == "train":
        outputs = [(values, values.square()) for values in policy.values(batches)]
    else:
        outputs = policy.logprobs(batches)
    found = {}
    for part, batch, (logprobs, entropy) in zip(split, batches, outputs, strict=True):
        for sequence, *values in zip(part, unpack(logprobs, batch), unpack(entropy, batch), strict=True):
            found[sequence.id] = np.stack(values)
    return found


def observe(model: str, parallel: ParallelConfig, count: int, adam_steps: int) -> dict[str, Any]:
    """What this rank sees of one layout, training on `count` micro-batches a replica and step."""
    # Megatron's distributed optimizer shards Adam's state alone; without it every rank holds whole gradients.
    sgd = OptimizerConfig(optimizer="sgd", lr=0.1, weight_decay=0.0, clip_grad=1e9, use_distributed_optimizer=False)
    policy = build(model, parallel, sgd)
    split, batches = micro_batches(policy, count)
    seen: dict[str, Any] = {"initial": shards(policy), "lead": policy.ranks.is_lead, "logprobs": logprobs_by_id(policy, split, batches)}
    loss = reward_loss if model == "reward" else loss_fn
    result = policy.train_step(batches, loss)
    seen |= {"loss": result.loss, "grad_norm": result.grad_norm, "sums": dict(result.sums), "updated_weights": shards(policy)}
    with gradients_as_weights(policy):
        frozen = {name for chunk in policy.chunks for name, parameter in chunk.named_parameters() if not parameter.requires_grad}
        seen["gradients"] = [shard for shard in shards(policy) if not shard[0].endswith("expert_bias") and shard[0] not in frozen]
    adam = build(model, parallel, OptimizerConfig(lr=3e-3, clip_grad=1.0))
    steps = [adam.train_step(batches, loss) for _ in range(adam_steps)]

    def names_of_its_own(logprobs: torch.Tensor, entropy: Any, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return loss(logprobs, entropy, batch)[0], {f"replica{adam.ranks.dp_rank}": torch.ones(())}

    seen["metrics"] = dict(adam.train_step(batches, names_of_its_own).sums)
    return seen | {"adam_losses": [step.loss for step in steps], "adam_norms": [step.grad_norm for step in steps]}


def main(settings: dict[str, Any]) -> None:
    rank = os.environ["RANK"]
    for number, layout in enumerate(settings["layouts"]):
        seen = observe(layout["model"], ParallelConfig(**layout["parallel"]), layout["micro_batches"], settings["adam_steps"])
        torch.save(seen, Path(settings["out"]) / f"layout{number}-rank{rank}.pt")
        parallel_state.destroy_model_parallel()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(400, exit=True)
    torch.set_num_threads(1)
    main(json.loads(Path(sys.argv[1]).read_text()))
    faulthandler.cancel_dump_traceback_later()
    leave(0)
