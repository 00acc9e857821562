"""The policy: a Megatron-Core model on its layout, with the few operations RL needs of it.

`logprobs(batches)`, `train_step(batches, loss_fn)`, `generate` (in `generate.py`), weight sets (`weights.py`), `save`/`load`
(`checkpoint.py`). Every method is a collective over all ranks of the job and returns when all are done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func

from r1mega.config import OptimizerConfig, ParallelConfig, PrecisionConfig
from r1mega.errors import R1MegaError
from r1mega.policy import build
from r1mega.policy.architecture import Architecture
from r1mega.policy.context import ContextShare, gather_rows, share_of
from r1mega.policy.initialize import drawn_later, initialize_weights
from r1mega.policy.model import OutputOptions
from r1mega.policy.packed import packed_batch
from r1mega.policy.platform import building_on_cpu, get_platform, initialize_distributed
from r1mega.policy.ranks import find_ranks
from r1mega.rollout.batching import make_microbatch
from r1mega.types import MicroBatch

LossFn = Callable[[torch.Tensor, Any, MicroBatch], tuple[torch.Tensor, Mapping[str, torch.Tensor]]]  # log-probs, entropy (values, None), batch
RewardHead = Literal["none", "train", "score"]


@dataclass(frozen=True)
class StepResult:
    """What one policy update reports; the same on every rank."""

    loss: float  # the global loss: sum over all tokens / global denominator
    grad_norm: float  # before clipping; nan or inf where it was not finite
    lr: float
    sums: Mapping[str, float]  # the loss function's metric sums over all replicas
    updated: bool  # false when the optimizer skipped the step: the gradient's norm was not finite


class Policy:
    """A model, its optimizer and its place on the layout."""

    def __init__(self, architecture: Architecture, *, vocab_size: int, parallel: ParallelConfig, precision: PrecisionConfig, seed: int,
                 optimizer: OptimizerConfig | None = None, training_steps: int = 0, terms: build.TrainingTerms | None = None,
                 temperature: float = 1.0, reward_head: RewardHead = "none", timeout_minutes: float = 10.0,
                 draw: bool = True) -> None:
        """Build everything on this rank. Without `optimizer` the policy can only score and generate.

        With `reward_head="train"` this is a reward model: passes return the scalar head's values, the vocabulary's head is frozen. With "score"
        it is a policy that can also hold a reward model's weights (`WeightSets.load_artifact`) and return its `values`; the head itself belongs to
        no checkpoint of the policy. Without `draw` the weights are whatever the memory held: for a caller that loads all of them.
        """
        terms = terms or build.TrainingTerms()
        self.platform = get_platform()
        self.transformer_engine = build.use_transformer_engine(precision, self.platform)
        initialize_distributed(self.platform, timeout_minutes)
        torch.manual_seed(seed)
        build.initialize_parallel(parallel, seed)
        self.ranks = find_ranks(self.platform, timeout_minutes)
        self.architecture, self.parallel, self.precision, self.terms = architecture, parallel, precision, terms
        self.reward_head: RewardHead = reward_head
        self.options = OutputOptions(vocab_size=vocab_size, temperature=temperature, mtp=terms.mtp_loss_scaling_factor > 0, mtp_detach=terms.mtp_detach,
                                     reward_head=reward_head != "none", values=reward_head == "train")
        self.config = build.transformer_config(architecture, parallel, precision, terms, transformer_engine=self.transformer_engine)
        with building_on_cpu(self.platform), drawn_later():
            self.chunks = build.build_chunks(self.config, architecture, self.options, self.platform, transformer_engine=self.transformer_engine)
        if draw:
            initialize_weights(self.chunks, seed)
        self._freeze()
        self.models: list[Any] = list(self.chunks)
        self.optimizer: Any = None
        self.scheduler: OptimizerParamScheduler | None = None
        self.version = 0  # of the weights: the number of updates they have had
        self.skipped_updates = 0  # for a gradient that was not finite; part of a checkpoint
        self._skipped_in_row = 0
        self.foreign_weights: str | None = None  # the weight set that stands in for the current weights (`WeightSets.use`)
        if optimizer is not None:
            self.models = list(build.wrap_data_parallel(self.config, self.chunks, optimizer))
            for model in self.models:
                model.broadcast_params()
            self.optimizer = build.build_optimizer(self.models, optimizer, precision)
            self.config.grad_scale_func = self.optimizer.scale_loss
            self._most_skipped = optimizer.max_nonfinite_updates
            self.scheduler = _scheduler(self.optimizer, optimizer, max(1, training_steps))
        self.sharding_checked = False  # whether a checkpoint's sharding has been validated: once is enough

    # ------------------------------------------------------------------------------------------------------------------- passes over data

    @property
    def pad_multiple(self) -> int:
        """Packed rows are padded to a multiple of this many tokens (sequence parallel, context-parallel chunks, FP8 tiles)."""
        tp, cp = self.parallel.tensor_model_parallel_size, self.parallel.context_parallel_size
        return tp * (2 * cp if cp > 1 else 1) * (16 if self.precision.fp8 else 1)

    def logprobs(self, batches: Sequence[MicroBatch], *, temperature: float | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(log-probs, entropy), float32 [T] on the CPU, of each micro-batch under the current weights; the same on every rank of the replica.

        Every replica passes the same number of micro-batches. No expert-bias counter moves.
        """
        return [(rows[0], rows[1]) for rows in self._outputs(batches, 2, temperature=temperature, mtp=False, values=False)]

    def values(self, batches: Sequence[MicroBatch]) -> list[torch.Tensor]:
        """The scalar head's value, float32 [T] on the CPU, at each token of each micro-batch, otherwise as `logprobs`.

        Here entry t belongs to `tokens[t]`: a sequence's reward is the value at its last token.
        """
        return [rows[0] for rows in self._outputs(batches, 1, mtp=False, values=True)]

    def _outputs(self, batches: Sequence[MicroBatch], count: int, **output: Any) -> list[torch.Tensor]:
        """The first `count` output rows, float32 [count, T] on the CPU, of each micro-batch, on every rank of the replica."""
        outputs: list[torch.Tensor] = []

        def collecting(_batch: MicroBatch, share: ContextShare | None) -> Callable[..., torch.Tensor]:
            def collect(rows: torch.Tensor, non_loss_data: bool = True) -> torch.Tensor:
                del non_loss_data
                rows = rows[:count].float()
                return (rows if share is None else gather_rows(rows, share)).cpu()

            return collect

        for model in self.models:
            model.eval()
        with self._output(**output), torch.no_grad():
            results = self._run(batches, collecting, forward_only=True, collect_non_loss_data=True)
        for model in self.models:
            model.train()
        if self.ranks.is_last_stage:
            outputs = results
        if len(self.ranks.replica_ranks) > 1:
            flat = torch.cat(outputs, 1) if self.ranks.is_last_stage else torch.empty(count, sum(len(b.tokens) for b in batches))
            dist.broadcast(flat, src=self.ranks.lead, group=self.ranks.replica_control)
            outputs = list(flat.split([len(b.tokens) for b in batches], dim=1))
        return outputs

    def train_step(self, batches: Sequence[MicroBatch], loss_fn: LossFn) -> StepResult:
        """One policy update from this replica's share of the step.

        `loss_fn` returns sums over a micro-batch. The step's loss is the sum over all micro-batches of all replicas divided once by the global
        number of loss tokens (positions with weight > 0); aggregation other than per token is expressed in the weights.

        Where the global gradient norm is not finite, no rank updates anything. Raises `R1MegaError` after `max_nonfinite_updates` of these in a row.
        """
        if self.foreign_weights is not None:
            raise R1MegaError(f"cannot train while weight set '{self.foreign_weights}' stands in for the weights")
        for model in self.models:
            model.zero_grad_buffer()
        self.optimizer.zero_grad()
        biases = [bias.clone() for bias in self._expert_biases()]  # they move at the end of the passes
        results = self._run(batches, partial(self._loss, loss_fn), forward_only=False)
        updated, grad_norm = self._update(biases)
        assert self.scheduler is not None
        lr = float(self.optimizer.param_groups[0]["lr"])
        if updated:
            self.scheduler.step(increment=1)
        self.version += 1
        sums = self._reduce(results)
        tokens = max(1.0, sums.pop("loss_tokens"))
        return StepResult(loss=sums.pop("loss") / tokens, grad_norm=grad_norm, lr=lr, sums=sums | {"loss_tokens": tokens}, updated=updated)

    def _expert_biases(self) -> list[torch.Tensor]:
        return [buffer for chunk in self.chunks for name, buffer in chunk.named_buffers() if name.endswith("expert_bias")]

    def _update(self, biases: Sequence[torch.Tensor]) -> tuple[bool, float]:
        """Whether the weights were updated, and the gradient's norm. Megatron itself would carry a NaN into them: it looks under fp16 alone. Where
        nothing is updated, the expert biases are again what they were before the passes."""
        overflow, norm = self.optimizer.prepare_grads(), float(self.optimizer.get_grad_norm())  # `step` does both again, to the same end
        if not self.ranks.max_over_ranks(float(overflow or not math.isfinite(norm))):
            self._skipped_in_row = 0
            updated, _, _ = self.optimizer.step()
            return bool(updated), norm
        for bias, before in zip(self._expert_biases(), biases, strict=True):
            bias.copy_(before)
        self.skipped_updates += 1
        self._skipped_in_row += 1
        if self._skipped_in_row >= self._most_skipped:
            raise R1MegaError(f"{self._skipped_in_row} updates in a row were skipped because the gradient's norm was not finite, here {norm} "
                              f"(optimizer.max_nonfinite_updates={self._most_skipped}); the weights are as they were before these. Look for a loss that is "
                              "not finite on some sample, or lower optimizer.lr; the checkpoints are kept")
        return False, norm

    def _loss(self, loss_fn: LossFn, batch: MicroBatch, share: ContextShare | None) -> Callable[..., Any]:
        def compute(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
            rows = rows if share is None else gather_rows(rows, share)
            loss, sums = loss_fn(rows[0], None if self.options.values else rows[1], batch)
            report = {name: value.detach().double() for name, value in sums.items()}
            report["loss"] = loss.detach().double()
            counts = batch.weights > 0
            report["loss_tokens"] = counts.sum().double()
            if len(rows) > 2:
                mtp = _mtp_loss(rows[2:], batch)
                report["mtp_loss"] = mtp.detach().double()
                loss = loss + mtp * (self.terms.mtp_loss_scaling_factor / (len(rows) - 2))
            mine = counts if share is None else counts[share.index]  # Megatron adds these up over the context-parallel ranks too
            return loss, mine.sum().int(), report

        return compute

    def _run(self, batches: Sequence[MicroBatch], make_loss: Callable[[MicroBatch, ContextShare | None], Callable[..., Any]], *,
             forward_only: bool, collect_non_loss_data: bool = False) -> list[Any]:
        """Run Megatron's pipeline schedule over the micro-batches; what the loss functions returned, on the last stage."""
        count = len(batches)
        if len(self.models) > 1:  # the interleaved schedule takes a multiple of the pipeline's size: fill up with rows of padding alone
            empty = make_microbatch([], self.pad_multiple)
            batches = [*batches, *[empty] * (-count % self.parallel.pipeline_model_parallel_size)]
        batches = [_to_device(batch, self.platform.device) for batch in batches]
        context = parallel_state.get_context_parallel_group()

        def forward_step(iterator: Iterator[MicroBatch], model: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
            batch = next(iterator)
            share = share_of(batch, context.rank(), context.size(), context) if context.size() > 1 else None
            tokens, labels, positions = ((row if share is None else row[share.index]) for row in (batch.tokens, batch.labels, batch.positions))
            packed = packed_batch(batch.lengths, positions, thd=self.transformer_engine, share=share,
                                  real=batch.num_sequences)
            rows = model(tokens[None], positions[None], None, labels=labels[None], packed_seq_params=packed)
            return rows, make_loss(batch, share)

        iterators: Any = [iter(batches) for _ in self.models]
        longest = max(len(batch.tokens) for batch in batches)
        schedule: Any = get_forward_backward_func()
        results = schedule(
            forward_step_func=forward_step, data_iterator=iterators if len(iterators) > 1 else iterators[0], model=self.models,
            num_microbatches=len(batches), seq_length=longest, micro_batch_size=1, forward_only=forward_only,
            collect_non_loss_data=collect_non_loss_data)
        return list(results or [])[:count]

    def _reduce(self, results: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, float]:
        """The global sums of what the loss functions reported, on every rank."""
        local: dict[str, float] = {}
        for result in results:
            for name, value in result.items():
                local[name] = local.get(name, 0.0) + float(value)
        # a replica whose micro-batches are padding alone may report other names
        names = sorted(set().union(*self.ranks.gather_replicas(sorted(local))))
        return self.ranks.sum_over_replicas({name: local.get(name, 0.0) for name in names})

    def _freeze(self) -> None:
        """Parameters that this policy never trains: no gradient, no optimizer state."""
        for chunk in self.chunks:
            for name, parameter in chunk.named_parameters():
                idle = name.startswith(("output_layer.", "mtp.")) and not self.architecture.tied_embeddings
                if (self.reward_head == "train" and idle) or (self.reward_head == "score" and name.startswith("reward_head.")):
                    parameter.requires_grad_(False)

    def _output(self, **changes: Any) -> Any:
        return _changed(self.options, **{name: value for name, value in changes.items() if value is not None})


class _changed:  # noqa: N801 - a context manager used as a function
    """Attributes of an object changed for the length of a `with` block."""

    def __init__(self, target: Any, **changes: Any) -> None:
        self.target, self.changes = target, changes

    def __enter__(self) -> None:
        self.before = {name: getattr(self.target, name) for name in self.changes}
        for name, value in self.changes.items():
            setattr(self.target, name, value)

    def __exit__(self, *error: object) -> None:
        for name, value in self.before.items():
            setattr(self.target, name, value)


def _to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    if device.type == "cpu":
        return batch
    import dataclasses

    moved: dict[str, Any] = {f.name: value.to(device, non_blocking=True) for f in dataclasses.fields(batch) if torch.is_tensor(value := getattr(batch, f.name))}
    return dataclasses.replace(batch, **moved)


def _mtp_loss(rows: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    """Sum over depths and tokens of the MTP cross-entropy, masked to the tokens whose own loss weight is positive."""
    ends = torch.tensor(batch.lengths, device=batch.weights.device).cumsum(0) - 1
    weights, total = (batch.weights > 0).float(), rows.new_zeros(())
    for logprobs in rows:
        weights = torch.roll(weights, -1)
        weights[ends] = 0
        total = total - (logprobs * weights).sum()
    return total


def _scheduler(optimizer: Any, config: OptimizerConfig, steps: int) -> OptimizerParamScheduler:
    return OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=config.lr, min_lr=config.min_lr, lr_warmup_steps=config.lr_warmup_steps,
        lr_decay_steps=max(steps, config.lr_warmup_steps + 1),
        lr_decay_style=config.lr_decay_style, start_wd=config.weight_decay, end_wd=config.weight_decay, wd_incr_steps=steps, wd_incr_style="constant")


def expert_parallel_group() -> Any:
    """The group whose ranks must run every forward pass together, or None when each replica is on its own."""
    group = parallel_state.get_expert_model_parallel_group()
    return group if group.size() > 1 else None
