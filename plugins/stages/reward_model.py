"""Train a reward model: the policy's architecture with a scalar head, from pairs (helpful) or single verdicts (safety). R1_RECIPE section 2.6."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from r1mega import hookimpl
from r1mega.config import CheckpointConfig, OptimizerConfig, StageCommon
from r1mega.data.judged import Judged, Judgements, survey
from r1mega.errors import ConfigError
from r1mega.hookspecs import Register
from r1mega.policy import flops
from r1mega.recipe.context import StageContext
from r1mega.rewards.model import RewardCard, last_values
from r1mega.rollout.packing import plan

from ._setup import Reporter, Saver, gather_of, load_tokenizer, make, make_policy, seal_checkpoint

if TYPE_CHECKING:
    import torch

    from r1mega.policy.policy import Policy
    from r1mega.types import MicroBatch


@dataclass(frozen=True)
class RewardModelConfig(StageCommon):
    """Which kind, and how long it is trained."""

    kind: Literal["helpful", "safety"] = "helpful"  # pairwise on final summaries, or point by point on whole responses
    epochs: int = 1
    batch_size: int = 256  # pairs, or single responses, of one step over all replicas
    max_length: int = 8192  # tokens of a response with its prompt; longer ones are left out
    micro_batch_tokens: int = 16384  # of one packed micro-batch: at least two responses
    held_out: float = 0.05  # share kept back to measure the accuracy
    moe_aux_loss_coeff: float = 0.0
    moe_router_bias_update_rate: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.micro_batch_tokens < 2 * self.max_length:
            raise ConfigError(f"micro_batch_tokens={self.micro_batch_tokens} must be at least 2 x max_length={self.max_length}: both responses of a pair "
                              "are compared in one micro-batch")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out={self.held_out}: must be above 0 and below 1; a reward model that nobody measured is not used")


class RewardModelStage:
    """Trains a helpful (pairwise) or safety (point-wise) reward model on a preference set."""

    version: ClassVar[str] = "2"
    inputs: ClassVar[Mapping[str, str]] = {"policy": "Checkpoint", "preferences": "PreferenceSet"}
    outputs: ClassVar[Mapping[str, str]] = {"reward_model": "RewardModel"}

    def __init__(self, config: RewardModelConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """`epochs` passes over the judgements; resumes bit-equal from the newest checkpoint."""
        from r1mega.policy import artifact, checkpoint
        from r1mega.policy.build import TrainingTerms

        config, tokenizer = self.config, load_tokenizer(self.config, context.inputs["policy"])
        limit = min(config.max_length, make("models", config.model).max_position_embeddings)
        judged = survey(Judgements(context.inputs["preferences"], config.kind, config.template, tokenizer), limit=limit, held_out=config.held_out,
                        rank=context.rank, world_size=context.world_size, gather=gather_of(config, context))
        train, held_out = judged.train, judged.held_out
        if not len(train) or not len(held_out):
            raise ConfigError(f"held_out={config.held_out} of {len(train) + len(held_out)} judgements leaves {len(train)} to train on and {len(held_out)} "
                              "to measure; give more judgements or another share")
        per_epoch = -(-len(train) // config.batch_size)
        steps = config.epochs * per_epoch
        policy = make_policy(config, tokenizer, optimizer=config.optimizer, steps=steps, reward_head="train",
                             terms=TrainingTerms(config.moe_aux_loss_coeff, config.moe_router_bias_update_rate))
        artifact.load_artifact(policy, context.inputs["policy"], head=False)
        saver = Saver(policy, context, config.checkpoint)
        loaded = checkpoint.load_latest(policy, context.checkpoints)
        start = loaded.step if loaded else 0
        loss_fn = pairwise_loss if config.kind == "helpful" else pointwise_loss
        loss = loaded.extra["loss"] if loaded else None
        meter = flops.Meter.of(policy)
        meter.resume(loaded.extra.get("flops") if loaded else None)
        with Reporter(context, steps, start) as reporter:
            for step in range(start + 1, steps + 1):
                began = time.perf_counter()
                epoch, place = divmod(step - 1, per_epoch)
                order = np.random.default_rng([config.seed, epoch]).permutation(len(train))
                chosen = train[order[place * config.batch_size: (place + 1) * config.batch_size]]
                batches, fill = self._packed(policy, judged, chosen)
                result = policy.train_step(batches, loss_fn)
                meter.add("training", flops.sequences(judged.lengths[chosen].ravel().tolist()))
                loss, count = result.loss, result.sums["loss_tokens"]
                reporter.step(step, {"loss": loss, "accuracy": result.sums["correct"] / count, "margin": result.sums["margin"] / count, "lr": result.lr,
                                     "grad_norm": result.grad_norm, "packing_fill": fill, "seconds": time.perf_counter() - began} | meter.step())
                if saver.due(step, step - 1, steps):
                    saver.save(step, {"loss": loss, "flops": dict(meter.totals)})
        saver.finish()
        measured, card = self._measure(policy, judged)
        meter.add("evaluation", flops.sequences(judged.lengths[held_out].ravel().tolist()))

        def complete(folder: Path) -> None:
            seal_checkpoint(folder, tokenizer)
            card.save(folder)

        artifact.export_artifact(policy, context.output("reward_model"), complete=complete, before_rename=context.check_epoch)
        return measured | {"loss": loss, "steps": steps, "judgements": len(train), "dropped_too_long": judged.dropped,
                           "skipped_updates": policy.skipped_updates} | meter.metrics()

    def _packed(self, policy: Policy, judged: Judged, indices: np.ndarray) -> tuple[list[MicroBatch], float]:
        """This replica's micro-batches, no other replica's judgements are read; the responses of a pair stay together, chosen first."""
        from r1mega.rollout.batching import make_microbatch

        packed = plan(judged.lengths[indices].sum(axis=1).tolist(), None, self.config.micro_batch_tokens, policy.ranks.dp_size)
        return [make_microbatch([sequence for i in members for sequence in judged.examples[int(indices[i])].sequences], policy.pad_multiple)
                for members in packed.microbatches[policy.ranks.dp_rank]], packed.fill

    def _measure(self, policy: Policy, judged: Judged) -> tuple[dict[str, Any], RewardCard]:
        """Accuracy on held-out judgements, and where the scores lie. A collective."""
        ranks, config = policy.ranks, self.config
        mine = [sequence for index in judged.held_out[ranks.dp_rank:: ranks.dp_size].tolist() for sequence in judged.examples[index].sequences]
        values = last_values(policy, [sequence.tokens for sequence in mine], config.micro_batch_tokens)
        signs = [float(sequence.advantages[-1]) for sequence in mine if sequence.advantages is not None]
        everything = [pair for part in ranks.gather_replicas(list(zip(values, signs, strict=True))) for pair in part]
        scores, verdicts = (np.array(column) for column in zip(*everything, strict=True))
        right = scores[::2] > scores[1::2] if config.kind == "helpful" else (scores > 0) == (verdicts > 0)
        card = RewardCard(config.kind, config.template.prompt, config.template.turn, float(scores.mean()), float(scores.std()), config.template.system)
        gap = float(scores[verdicts > 0].mean() - scores[verdicts < 0].mean()) if (verdicts > 0).any() and (verdicts < 0).any() else None
        return {"held_out_accuracy": float(right.mean()), "held_out_gap": gap, "held_out": len(judged.held_out)}, card


def last_of_each(values: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    """The values at the last tokens of the micro-batch's sequences, [N]."""
    import torch

    return values[torch.tensor(batch.lengths[: batch.num_sequences], device=values.device, dtype=torch.int64).cumsum(0) - 1]


def pairwise_loss(values: torch.Tensor, entropy: None, batch: MicroBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """-log sigmoid(r(chosen) - r(rejected)) of each pair, counted twice: each of the pair's sequences counts once in the denominator."""
    from torch.nn.functional import logsigmoid

    del entropy
    chosen, rejected = last_of_each(values, batch).view(-1, 2).unbind(1)
    margin = chosen - rejected
    return -2 * logsigmoid(margin).sum(), {"correct": 2 * (margin > 0).sum(), "margin": 2 * margin.detach().sum()}


def pointwise_loss(values: torch.Tensor, entropy: None, batch: MicroBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """Binary cross-entropy of each response: the value is the logit of `safe`."""
    import torch
    from torch.nn.functional import logsigmoid

    del entropy
    assert batch.advantages is not None
    before_last = torch.tensor(batch.lengths[: batch.num_sequences], device=values.device, dtype=torch.int64).cumsum(0) - 2
    margin = last_of_each(values, batch) * batch.advantages[before_last]  # per-token fields stand at the prediction of their token
    return -logsigmoid(margin).sum(), {"correct": (margin > 0).sum(), "margin": margin.detach().sum()}


@hookimpl
def register_stages(register: Register) -> None:
    register("reward_model", RewardModelStage, config=RewardModelConfig)
