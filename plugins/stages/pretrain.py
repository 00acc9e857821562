"""Pre-training from nothing on the task's own documents: the base model of the tiny recipes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from r1mega import hookimpl
from r1mega.config import CheckpointConfig, OptimizerConfig, StageCommon
from r1mega.errors import ConfigError
from r1mega.hookspecs import Register
from r1mega.policy import flops
from r1mega.recipe.context import StageContext
from r1mega.rollout.packing import plan
from r1mega.types import TrainSequence

from ._setup import Reporter, Saver, load_tokenizer, make, make_policy, make_task, seal_checkpoint

if TYPE_CHECKING:
    import torch

    from r1mega.hookspecs import Tokenizer
    from r1mega.types import MicroBatch


@dataclass(frozen=True)
class PretrainConfig(StageCommon):
    """Next-token prediction on documents of the task."""

    steps: int = 400
    documents_per_step: int = 128
    max_tokens_per_step: int = 0  # a step takes its documents up to so many tokens, however many it would have; 0: all of them
    micro_batch_tokens: int = 8192  # tokens of one packed micro-batch
    tokenizer_documents: int = 2000  # the tokenizer is trained on so many
    moe_aux_loss_coeff: float = 1e-4  # DeepSeek-V3's sequence balance loss
    moe_router_bias_update_rate: float = 1e-3  # DeepSeek-V3's gamma
    mtp_loss_scaling_factor: float = 0.3  # DeepSeek-V3's lambda, first 10T tokens; without MTP layers it does nothing
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.documents_per_step < self.parallel.data_parallel_size:
            raise ConfigError(f"steps={self.steps} must be at least 1 and documents_per_step={self.documents_per_step} at least "
                              f"parallel.data_parallel_size={self.parallel.data_parallel_size}")


class Pretrain:
    """Pre-trains a base model, and its tokenizer, on documents that the task generates."""

    version: ClassVar[str] = "2"
    inputs: ClassVar[Mapping[str, str]] = {}
    outputs: ClassVar[Mapping[str, str]] = {"checkpoint": "Checkpoint"}

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        from r1mega.policy import artifact, checkpoint
        from r1mega.policy.build import TrainingTerms
        from r1mega.rollout.batching import make_microbatch

        config, task = self.config, make_task(self.config)
        if not hasattr(task, "documents"):
            raise ConfigError(f"task '{config.task.name}' writes no documents to pre-train on; choose a task that does")  # type: ignore[attr-defined]
        tokenizer = self._tokenizer(context, task)
        terms = TrainingTerms(config.moe_aux_loss_coeff, config.moe_router_bias_update_rate, config.mtp_loss_scaling_factor, mtp_detach=False)
        policy = make_policy(config, tokenizer, optimizer=config.optimizer, steps=config.steps, terms=terms)
        saver = Saver(policy, context, config.checkpoint)
        loaded = checkpoint.load_latest(policy, context.checkpoints)
        start = loaded.step if loaded else 0
        metrics: dict[str, Any] = dict(loaded.extra) if loaded else {}
        meter = flops.Meter.of(policy)
        meter.resume(metrics.get("flops"))
        with Reporter(context, config.steps, start) as reporter:
            for step in range(start + 1, config.steps + 1):
                began = time.perf_counter()
                sequences = self._sequences(task, tokenizer, step)
                packed = plan([len(s) for s in sequences], None, config.micro_batch_tokens, policy.ranks.dp_size)
                batches = [make_microbatch([sequences[i] for i in members], policy.pad_multiple) for members in packed.microbatches[policy.ranks.dp_rank]]
                result = policy.train_step(batches, next_token_loss)
                meter.add("training", flops.sequences(len(s) for s in sequences))
                seconds = time.perf_counter() - began
                metrics = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": result.lr, "tokens_per_second": packed.tokens / seconds,
                           "packing_fill": packed.fill, "seconds": seconds} | meter.step()
                reporter.step(step, metrics)
                if saver.due(step, step - 1, config.steps):
                    saver.save(step, {"loss": result.loss, "flops": dict(meter.totals)})
        saver.finish()
        artifact.export_artifact(policy, context.output("checkpoint"), complete=lambda folder: seal_checkpoint(folder, tokenizer),
                                 before_rename=context.check_epoch)
        return {"loss": metrics.get("loss"), "steps": config.steps, "skipped_updates": policy.skipped_updates} | meter.metrics()

    def _tokenizer(self, context: StageContext, task: Any) -> Tokenizer:
        """Train the tokenizer on rank 0 (once: a resumed stage finds it), load it everywhere."""
        from r1mega import plugins
        from r1mega.policy.platform import get_platform, initialize_distributed

        initialize_distributed(get_platform(), self.config.cluster.timeout_minutes)
        import torch.distributed as dist

        choice: Any = self.config.tokenizer
        factory = plugins.load().registry.get("tokenizers", choice.name).factory
        folder: Path = context.dir / "tokenizer"
        if context.rank == 0 and hasattr(factory, "train") and not (folder / "done").exists():
            factory.train(choice.config, (self._text(q, a) for q, a in task.documents(self.config.tokenizer_documents, self.config.seed)), folder)
            (folder / "done").touch()
        dist.barrier()
        return load_tokenizer(self.config, context.dir)

    def _text(self, question: str | None, response: str) -> str:
        return response if question is None else self.config.template.prompt.replace("{question}", question) + response

    def _sequences(self, task: Any, tokenizer: Tokenizer, step: int) -> list[TrainSequence]:
        """The step's documents, cut at the model's context: a pure function of (seed, step), so that a resumed run sees the same ones."""
        config = self.config
        limit = min(config.micro_batch_tokens, make("models", config.model).max_position_embeddings)
        most, total = config.max_tokens_per_step, 0
        found: list[TrainSequence] = []
        for index, (question, response) in enumerate(task.documents(config.documents_per_step, config.seed * 1_000_003 + step)):
            tokens = np.array([*tokenizer.encode(self._text(question, response)), tokenizer.eos_id][:limit], np.int64)
            total += len(tokens)
            if most and total > most and len(found) >= config.parallel.data_parallel_size:
                break
            found.append(TrainSequence(str(index), tokens, np.ones(len(tokens), np.float32)))
        return found


def next_token_loss(logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """Cross-entropy summed over the tokens with weight."""
    return -(logprobs * batch.weights).sum(), {"entropy": (entropy.detach() * (batch.weights > 0)).sum()}


@hookimpl
def register_stages(register: Register) -> None:
    register("pretrain", Pretrain, config=PretrainConfig)
