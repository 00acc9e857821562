"""Supervised fine-tuning on answered prompts: the cold start, the 800k stage and distillation (R1_RECIPE sections 2.1, 2.2, 2.4, 5)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from r1mega import hookimpl
from r1mega.config import CheckpointConfig, OptimizerConfig, StageCommon
from r1mega.data.chat import check_template
from r1mega.data.corpus import Corpus, EncodedRows, survey
from r1mega.errors import ConfigError
from r1mega.hookspecs import Register
from r1mega.policy import flops
from r1mega.recipe.context import StageContext
from r1mega.rollout.packing import PackingPlan, plan

from ._setup import Reporter, Saver, gather_of, load_tokenizer, make, make_policy, seal_checkpoint

if TYPE_CHECKING:
    import torch

    from r1mega.policy.policy import Policy
    from r1mega.types import MicroBatch


@dataclass(frozen=True)
class SFTConfig(StageCommon):
    """Cross-entropy on the responses of a `SampleSet`, several epochs of it."""

    epochs: int = 2
    batch_size: int = 128  # samples of one step, over all replicas
    max_length: int = 32768  # tokens of a sample, prompt included; longer ones are dropped
    micro_batch_tokens: int = 32768  # tokens of one packed micro-batch, at least the longest sample
    validation_fraction: float = 0.005  # share of the prompts held out for the validation loss; 0: none
    moe_aux_loss_coeff: float = 1e-4
    moe_router_bias_update_rate: float = 0.0  # 0 freezes the expert bias, as at the end of pre-training
    mtp_loss_scaling_factor: float = 0.1  # not detached: as in pre-training; without MTP layers it does nothing
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length", "micro_batch_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction={self.validation_fraction}: must be at least 0 and below 1")
        check_template(self.template)


class SFT:
    """Fine-tunes a policy on samples: cold start, the stage on reasoning and general data, distillation into a student."""

    version: ClassVar[str] = "2"
    inputs: ClassVar[Mapping[str, str]] = {"policy": "Checkpoint", "samples": "SampleSet", "extra": "SampleSet?"}
    outputs: ClassVar[Mapping[str, str]] = {"checkpoint": "Checkpoint"}

    def __init__(self, config: SFTConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """`epochs` passes over the samples; resumes bit-equal from the newest checkpoint."""
        from r1mega.policy import artifact, checkpoint

        config, tokenizer = self.config, load_tokenizer(self.config, context.inputs["policy"])
        folders = [context.inputs[name] for name in ("samples", "extra") if name in context.inputs]
        corpus = self._survey(EncodedRows(folders, config.template, tokenizer), context)
        steps = config.epochs * corpus.steps_per_epoch(config.batch_size)
        policy = make_policy(config, tokenizer, optimizer=config.optimizer, steps=steps, terms=self._terms())
        artifact.load_artifact(policy, context.inputs["policy"])
        saver = Saver(policy, context, config.checkpoint)
        loaded = checkpoint.load_latest(policy, context.checkpoints)
        start = loaded.step if loaded else 0
        kept: dict[str, Any] = dict(loaded.extra) if loaded else {"validation_loss_before": self._validate(policy, corpus)}
        meter, validation = flops.Meter.of(policy), _work(corpus, corpus.held_out.tolist())
        meter.resume(kept.pop("flops", None))
        if loaded is None:
            meter.add("evaluation", validation)
        with Reporter(context, steps, start) as reporter:
            for step in range(start + 1, steps + 1):
                began = time.perf_counter()
                epoch, indices = corpus.batch(step, config.batch_size, config.seed)
                batches, packed = self._packed(policy, corpus, indices)
                result = policy.train_step(batches, response_loss)
                meter.add("training", _work(corpus, indices))
                kept["loss"], seconds = result.loss, time.perf_counter() - began
                reporter.step(step, {"loss": result.loss, "grad_norm": result.grad_norm, "lr": result.lr, "epoch": epoch + 1, "samples": len(indices),
                                     "tokens_per_second": packed.tokens / seconds, "packing_fill": packed.fill, "seconds": seconds}
                              | _means(result.sums) | meter.step())
                if saver.due(step, step - 1, steps):
                    saver.save(step, kept | {"flops": dict(meter.totals)})
        saver.finish()
        meter.add("evaluation", validation)
        metrics = {"validation_loss": self._validate(policy, corpus)} | kept | {"samples": len(corpus.train), "held_out": len(corpus.held_out),
                          "dropped_too_long": corpus.dropped, "steps": steps, "tokens": config.epochs * corpus.tokens,
                          "skipped_updates": policy.skipped_updates} | meter.metrics()
        artifact.export_artifact(policy, context.output("checkpoint"), complete=lambda folder: seal_checkpoint(folder, tokenizer),
                                 before_rename=context.check_epoch)
        return metrics

    def _survey(self, rows: EncodedRows, context: StageContext) -> Corpus:
        """Every row read and measured, before the model is built: the learning-rate schedule must know how many steps there will be."""
        config = self.config
        limit = min(config.max_length, make("models", config.model).max_position_embeddings)
        if config.micro_batch_tokens < limit:
            raise ConfigError(f"micro_batch_tokens={config.micro_batch_tokens} must be at least the longest sample, {limit} tokens (the smaller of max_length "
                              "and the model's max_position_embeddings)")
        return survey(rows, limit=limit, held_out=config.validation_fraction, rank=context.rank, world_size=context.world_size,
                      gather=gather_of(config, context))

    def _terms(self) -> Any:
        from r1mega.policy.build import TrainingTerms

        config = self.config
        return TrainingTerms(config.moe_aux_loss_coeff, config.moe_router_bias_update_rate, config.mtp_loss_scaling_factor, mtp_detach=False)

    def _packed(self, policy: Policy, corpus: Corpus, indices: Sequence[int]) -> tuple[list[MicroBatch], PackingPlan]:
        """This replica's micro-batches of the samples, best-fit packed by length; no other replica's samples are read here."""
        from r1mega.rollout.batching import make_microbatch

        packed = plan([int(corpus.lengths[i]) for i in indices], None, self.config.micro_batch_tokens, policy.ranks.dp_size)
        return [make_microbatch([corpus.rows[indices[i]] for i in members], policy.pad_multiple)
                for members in packed.microbatches[policy.ranks.dp_rank]], packed

    def _validate(self, policy: Policy, corpus: Corpus) -> float | None:
        """Cross-entropy per response token, in nats, of the held-out samples; None where there are none. A collective."""
        held_out, size = corpus.held_out.tolist(), self.config.batch_size
        sums = {"loss": 0.0, "tokens": 0.0}
        for first in range(0, len(held_out), size):
            batches, _ = self._packed(policy, corpus, held_out[first: first + size])
            for batch, (logprobs, _) in zip(batches, policy.logprobs(batches), strict=True):
                sums["loss"] -= float((logprobs.double() * batch.weights).sum())
                sums["tokens"] += float((batch.weights > 0).sum())
        totals = policy.ranks.sum_over_replicas(sums)
        return totals["loss"] / totals["tokens"] if totals["tokens"] else None


def _work(corpus: Corpus, indices: Sequence[int]) -> flops.Work:
    """Of one pass over these samples, those of all replicas."""
    return flops.sequences(int(corpus.lengths[i]) for i in indices)


def response_loss(logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """Cross-entropy summed over the response tokens; `Policy.train_step` divides once by their number over the whole step."""
    return -(logprobs * batch.weights).sum(), {"entropy": (entropy.detach() * (batch.weights > 0)).sum()}


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """Per response token, and how many there were."""
    return {name: value / sums["loss_tokens"] for name, value in sums.items() if name != "loss_tokens"} | {"loss_tokens": sums["loss_tokens"]}


@hookimpl
def register_stages(register: Register) -> None:
    register("sft", SFT, config=SFTConfig)
