"""The state and the steps of an RL stage: what `rl.py`'s loop is made of."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r1mega.algo.advantages import count_outcomes
from r1mega.errors import R1MegaError
from r1mega.hookspecs import Algorithm, Generator
from r1mega.policy import flops
from r1mega.recipe import files
from r1mega.recipe.context import StageContext
from r1mega.rewards.pool import RewardPool
from r1mega.rewards.schedule import applicable
from r1mega.rewards.scorers import ModelTerms, split_terms
from r1mega.rollout.collect import WorkItem, generate_and_score
from r1mega.rollout.curriculum import PromptStream, max_tokens_at
from r1mega.rollout.evaluate import Bank
from r1mega.rollout.experience import Rollout, Sample, build_samples, split_minibatches, weigh
from r1mega.rollout.ledger import Ledger
from r1mega.rollout.packing import plan
from r1mega.rollout.passes import over_sequences
from r1mega.rollout.samples import write_samples
from r1mega.rollout.statistics import rollout_means, rollout_sums
from r1mega.types import Prompt, SamplingParams, ScoredGroup

from ._setup import Saver, bank_of

if TYPE_CHECKING:
    import torch

    from r1mega.policy.policy import Policy
    from r1mega.policy.weights import WeightSets
    from r1mega.types import MicroBatch

    from .rl import RLConfig

_log = logging.getLogger(__name__)


@dataclass
class Learner:
    """One rank's RL state. Every method is a collective over all ranks unless it says otherwise."""

    config: RLConfig
    context: StageContext
    policy: Policy
    generator: Generator
    algorithm: Algorithm
    stream: PromptStream
    sampling: SamplingParams  # with the first cap on the length
    model_terms: ModelTerms
    seal: Callable[[Path], None]  # completes a checkpoint artifact; called on rank 0
    max_flops: float | None = None  # of training, log-prob passes and generation together; None: no limit

    step: int = 0  # policy updates done
    rollout: int = 0  # rollouts done
    cursor: int = 0  # prompts taken from the stream
    skipped: int = 0  # updates without a single sample to learn from; the policy counts those it skips
    sets: WeightSets | None = None
    pool: RewardPool | None = None
    rollout_metrics: dict[str, float] = field(default_factory=dict)  # of the rollout under way, part of each of its updates' metrics
    _next_cursor: int = 0
    _told: bool = False  # whether an update's metrics have told what the rollout under way spent
    _began: int = 0  # the step at which the rollout under way began

    @property
    def ended(self) -> bool:
        """Whether all updates are done, or the compute for them is spent."""
        return self.step >= self.config.steps or (self.max_flops is not None and self.meter.model_flops >= self.max_flops)

    # ---------------------------------------------------------------------------------------------------------------- beginning and end

    def __enter__(self) -> Learner:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.close()

    @property
    def writes(self) -> bool:
        """Whether this rank writes the readable samples."""
        return self.policy.ranks.is_lead and self.policy.ranks.dp_rank == 0

    @property
    def _needs_reference(self) -> bool:
        return bool(self.algorithm.needs_reference)

    def resume(self) -> None:
        """Start the reward workers and continue from the newest checkpoint, if there is one."""
        from r1mega.policy import checkpoint
        from r1mega.policy.weights import WeightSets

        if self.policy.ranks.is_lead:
            self.pool = RewardPool.from_config(split_terms(self.config.reward)[0])
        self.saver = Saver(self.policy, self.context, self.config.checkpoint)
        self.ledger = Ledger(self.context.rollouts / "ledger", self.policy.ranks.dp_rank, before_rename=self.context.check_epoch)
        self.sets = WeightSets(self.policy) if self._needs_reference else None
        self.meter = flops.Meter.of(self.policy)
        loaded = checkpoint.load_latest(self.policy, self.context.checkpoints, self.sets)
        if loaded is not None:
            self.step, self.rollout = loaded.step, loaded.extra["rollout"]
            self.cursor, self.skipped = loaded.extra["cursor"], loaded.extra["skipped"]
            self.meter.resume(loaded.extra.get("flops"))
        elif self.sets is not None:
            self.sets.capture("reference")

    def once(self, name: str, evaluate: Callable[[Bank], dict[str, Any]]) -> dict[str, Any]:
        """An evaluation's result, made once for the whole stage and kept in a file across resumes; until it is there, finished units are."""
        path, ranks, bank = self.context.dir / f"{name}.json", self.policy.ranks, bank_of(self.context, self.config.evaluation, name)
        found = ranks.max_over_ranks(float(path.exists() and self.context.rank == 0))
        value: dict[str, Any] = files.read_json(path) if found else evaluate(bank)
        ranks.barrier()  # every rank is done with the bank, and what else the evaluation writes is there
        if self.context.rank == 0:
            if not found:
                files.write_json(path, value, self.context.check_epoch)
            self.context.check_epoch()
            bank.drop()
        return value

    def export(self) -> None:
        """Write the checkpoint artifact."""
        from r1mega.policy import artifact

        self.saver.finish()
        artifact.export_artifact(self.policy, self.context.output("checkpoint"), complete=self.seal, before_rename=self.context.check_epoch)

    def evaluation_flops(self, groups: Sequence[ScoredGroup]) -> float:
        """What answering held-out problems took on all replicas; `groups` are this one's. Not counted by the meter, but kept in the evaluation's file."""
        return self.meter.cost(self._total(flops.generation(groups)))

    def _total(self, work: flops.Work) -> flops.Work:
        """This replica's work and that of all others; their sums are whole numbers and exact."""
        return flops.Work(**self.policy.ranks.sum_over_replicas(asdict(work)))

    def flops_metrics(self) -> dict[str, float]:
        """The stage's closing metrics of compute, once every evaluation has its file."""
        found = [*self.context.dir.glob("evaluation_*.json"), *self.context.dir.glob("monitor_*.json")]
        self.meter.totals["evaluation"] = sum(files.read_json(path).get("flops_evaluation", 0.0) for path in sorted(found))
        return self.meter.metrics()

    # ------------------------------------------------------------------------------------------------------------------------- a rollout

    def collect(self) -> Rollout:
        """This replica's share of the next rollout, from the ledger where it is banked, else generated, scored and banked unit by unit.

        With dynamic sampling (DAPO) more prompts are taken until enough groups are kept.
        """
        began = time.perf_counter()
        share = self.config.prompts_per_rollout // self.policy.ranks.dp_size
        keep = getattr(self.algorithm, "keep_group", None) if getattr(self.algorithm, "dynamic_sampling", False) else None
        groups: list[ScoredGroup] = []
        seconds = {"generate_seconds": 0.0, "score_seconds": 0.0}
        generated, scored = flops.Work(), flops.Work()
        self._began, self._next_cursor, unit = self.step, self.cursor, 0
        for _ in range(self.config.max_resamples if keep else 1):
            items = self._items(share)
            for first in range(0, share, self.config.prompts_per_unit):
                made, spent = self._unit(unit, items[first: first + self.config.prompts_per_unit])
                groups += [group for group in made if keep is None or keep(group)]
                generated += flops.generation(made)
                scored += flops.sequences(self.model_terms.lengths(made, self.step))
                seconds = {name: seconds[name] + spent.get(name, 0.0) for name in seconds}
                unit += 1
            if keep is None or not self.policy.ranks.max_over_ranks(float(len(groups) < share)):
                break
        groups = groups[:share]
        advantages = self.algorithm.advantages(groups)
        means = rollout_means(self.policy.ranks.sum_over_replicas(rollout_sums(groups, self.config.reward.terms)))
        self.meter.add("generation", self._total(generated))
        self.meter.add("inference", self._total(scored), values=True)
        self._told = False
        self.rollout_metrics = means | seconds | {"rollout_seconds": time.perf_counter() - began}
        if self.writes:
            write_samples(self.context.rollouts / "samples.jsonl", self.step + 1, groups, self.config.samples_logged, advantages)
        return Rollout(groups, advantages)

    def _items(self, share: int) -> list[WorkItem]:
        """This replica's part of the next `prompts_per_rollout` prompts of the stream; replicas take turns."""
        total, ranks = self.config.prompts_per_rollout, self.policy.ranks
        prompts = self.stream.take(self.step, self._next_cursor, total)
        items = [WorkItem(self._next_cursor + place, prompt) for place, prompt in enumerate(prompts)]
        self._next_cursor += total
        return items[ranks.dp_rank:: ranks.dp_size][:share]

    def _unit(self, unit: int, items: Sequence[WorkItem]) -> tuple[Sequence[ScoredGroup], dict[str, float]]:
        """One unit of the rollout, from the ledger where every replica has banked it."""
        ranks = self.policy.ranks
        banked = self.ledger.load_together(self.rollout, unit, items, self.config.group_size, ranks)
        if banked is not None:
            return banked, {}
        groups, seconds = generate_and_score(items, self.config.group_size, generator=self.generator, pool=self.pool, replica=ranks,
                                             sampling=self.sampling_now, seed=self.config.seed, step=self.rollout, terms_of=self._terms_of)
        groups = self.model_terms.add(groups, self.step)
        if ranks.is_lead:
            self.ledger.commit(self.rollout, unit, groups)
        return groups, seconds

    def _terms_of(self, prompt: Prompt) -> tuple[str, ...]:
        """The reward terms that count for a prompt in this rollout."""
        return applicable(self.config.reward.terms, prompt.domain, self.step)

    @property
    def sampling_now(self) -> SamplingParams:
        """With the cap on the length that holds at this step."""
        return replace(self.sampling, max_tokens=max_tokens_at(self.step, self.sampling.max_tokens, self.config.max_tokens_schedule))

    def end_rollout(self) -> None:
        """Move on: replace the reference when it is due, save when it is due, let the ledger forget what no resume can need."""
        before = self._began
        self.rollout += 1
        self.cursor = self._next_cursor
        every = self.config.reference_every
        if self.sets is not None and every and self.step // every > before // every:
            self.sets.capture("reference")
        if self.saver.due(self.step, before, self.step if self.ended else self.config.steps):
            extra = {"rollout": self.rollout, "cursor": self.cursor, "skipped": self.skipped, "flops": dict(self.meter.totals)}
            self.saver.save(self.step, extra, self.sets)
            if self.policy.ranks.is_lead:
                self.ledger.forget_before(self._oldest_rollout())

    def _oldest_rollout(self) -> int:
        """The first rollout that a resume from the oldest kept checkpoint would need."""
        due = max(self.config.checkpoint.every, self.config.updates_per_rollout)
        return max(0, self.rollout - (self.config.checkpoint.keep_last + 1) * -(-due // self.config.updates_per_rollout))

    # ------------------------------------------------------------------------------------------------------------------------ the updates

    def minibatches(self, rollout: Rollout) -> Iterator[list[Sample]]:
        """This replica's samples of each minibatch, with old and reference log-probs taken once, before the first update."""
        ranks, config = self.policy.ranks, self.config
        outcomes = ranks.sum_over_replicas({name: float(value) for name, value in count_outcomes(rollout.groups, rollout.advantages).items()})
        self.rollout_metrics |= outcomes
        table = build_samples(rollout.groups, rollout.advantages)
        samples, places = [], []
        for position, row in enumerate(table):
            for k, sample in enumerate(row):
                if sample is not None:
                    samples.append(sample)
                    places.append((position * ranks.dp_size + ranks.dp_rank) * config.group_size + k)
        samples = self._with_logprobs(samples)
        total = config.prompts_per_rollout * config.group_size
        which = split_minibatches(places, total, config.updates_per_rollout, config.seed, self.rollout)
        for number in range(min(config.updates_per_rollout, config.steps - self.step)):
            yield [sample for sample, home in zip(samples, which, strict=True) if home == number]

    def _with_logprobs(self, samples: list[Sample]) -> list[Sample]:
        """The samples with old log-probs, where the policy will have moved by the time they are used, and reference log-probs, where the loss
        reads them; samples that do not contribute stay without."""
        began = time.perf_counter()
        if self.config.updates_per_rollout > 1:
            old = self._sequence_logprobs(samples)
            samples = [replace(sample, sequence=replace(sample.sequence, old_logprobs=values)) for sample, values in zip(samples, old, strict=True)]
        if self.sets is not None:
            with self.sets.use("reference"):
                reference = self._sequence_logprobs(samples)
            samples = [replace(sample, sequence=replace(sample.sequence, ref_logprobs=values)) for sample, values in zip(samples, reference, strict=True)]
        self.rollout_metrics["logprob_seconds"] = time.perf_counter() - began
        return samples

    def _sequence_logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray | None]:
        """Log-probs [L] of each of this replica's sequences under the weights in place; None for one that does not contribute."""
        from r1mega.rollout.batching import unpack

        self.meter.add("inference", self._total(_work(samples)))
        wanted = [sample.sequence for sample in samples if sample.contributes]
        values = iter(over_sequences(self.policy, wanted, self.config.micro_batch_tokens, self.policy.logprobs,
                                     lambda rows, batch: unpack(rows[0], batch)))
        return [next(values) if sample.contributes else None for sample in samples]

    def update(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        """One policy update on all replicas' parts of a minibatch; its metrics."""
        began = time.perf_counter()
        ranks = self.policy.ranks
        lengths = [sample.completion_length for sample in minibatch]
        tokens = sum(sample.completion_length for sample in minibatch if sample.contributes)
        totals = ranks.sum_over_replicas({"tokens": float(tokens), "denominator": float(self.algorithm.denominator(lengths))})
        self.step += 1
        if not totals["tokens"] or not totals["denominator"]:
            self.skipped += 1
            return self._metrics({"skipped": 1.0, "seconds": time.perf_counter() - began})
        batches, fill = self._balanced(minibatch, totals["tokens"] / totals["denominator"])
        result = self.policy.train_step(batches, self._loss)
        self.meter.add("training", self._total(_work(minibatch)))
        sums = dict(result.sums)
        mismatch = {name.removeprefix("mismatch/"): sums.pop(name) for name in list(sums) if name.startswith("mismatch/")}
        count = max(1.0, sums.pop("tokens", result.sums["loss_tokens"]))
        metrics = {name: value / count for name, value in sums.items() if name != "loss_tokens"}
        metrics["clip_fraction"] = metrics.get("clip_fraction_low", 0.0) + metrics.get("clip_fraction_high", 0.0)
        metrics |= self._guard(mismatch)
        metrics |= {"loss": result.loss, "grad_norm": result.grad_norm, "lr": result.lr, "skipped": float(not result.updated), "packing_fill": fill}
        return self._metrics(metrics | {"train_seconds": time.perf_counter() - began})

    def _metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        merged = {**self.rollout_metrics, **metrics}
        spent = merged.get("rollout_seconds", 0.0) + merged.get("logprob_seconds", 0.0) + merged.get("train_seconds", 0.0) * self.config.updates_per_rollout
        if spent:
            merged["tokens_per_second"] = merged["generated_tokens"] / spent
        if self._told:
            merged = {name: value for name, value in merged.items() if name in metrics or not name.endswith("_seconds")}
        self._told = True
        return merged | self.meter.step()  # what the rollout spent, FLOPs and seconds, stands at its first update

    def _balanced(self, minibatch: Sequence[Sample], scale: float) -> tuple[list[MicroBatch], float]:
        """This replica's micro-batches after the global balancing by length; every replica has the same number of them."""
        from r1mega.rollout.batching import make_microbatch
        from r1mega.rollout.exchange import exchange

        ranks = self.policy.ranks
        mine = weigh(minibatch, self.algorithm, scale)
        per_replica = ranks.gather_replicas([len(sequence) for sequence in mine])
        lengths = [length for part in per_replica for length in part]
        owners = [replica for replica, part in enumerate(per_replica) for _ in part]
        packed = plan(lengths, owners, self.config.micro_batch_tokens, ranks.dp_size)
        homes = [0] * len(lengths)
        for replica, bins in enumerate(packed.microbatches):
            for members in bins:
                for index in members:
                    homes[index] = replica
        here = exchange(mine, owners=owners, lengths=lengths, homes=homes, me=ranks.dp_rank, peers=ranks.peers, group=ranks.control) \
            if homes != owners else dict(zip([i for i, owner in enumerate(owners) if owner == ranks.dp_rank], mine, strict=True))
        batches = [make_microbatch([here[index] for index in members], self.policy.pad_multiple) for members in packed.microbatches[ranks.dp_rank]]
        return batches, packed.fill

    def _loss(self, logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        from r1mega.rollout.mismatch import SUMS, mismatch

        loss, sums = self.algorithm.loss(logprobs, entropy, batch)
        assert batch.behaviour_logprobs is not None
        trainer = logprobs if batch.old_logprobs is None else batch.old_logprobs
        distance = mismatch(batch.behaviour_logprobs, trainer.detach(), batch.weights > 0)
        return loss, {**sums, **{f"mismatch/{name}": distance[name] for name in SUMS}}

    def _guard(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The generator-to-trainer distance of this step; warns or stops where it is too large or not a number."""
        count = sums.get("count", 0.0)
        distance = sums["abs_diff"] / count if count else float("nan")
        found = {"mismatch": distance, "mismatch_kl": sums["kl"] / count if count else float("nan"),
                 "effective_sample_fraction": sums["weight"] ** 2 / (count * sums["weight_square"]) if count else float("nan")}
        limit = self.config.mismatch
        if limit.action != "off" and (not distance <= limit.max_mean_abs or sums["nonfinite"]):
            message = (f"step {self.step}: the generator's log-probs are {distance:.4g} nats per token from the trainer's (mismatch.max_mean_abs="
                       f"{limit.max_mean_abs}), {sums['nonfinite']:.0f} tokens not finite; the samples do not come from the policy that is trained")
            if limit.action == "stop":
                raise R1MegaError(message)
            if self.context.rank == 0:
                _log.warning("%s", message)
        return found


def _work(samples: Sequence[Sample]) -> flops.Work:
    """Of one pass over this replica's samples that give a gradient; the others are not computed."""
    return flops.sequences(len(sample.sequence) for sample in samples if sample.contributes)
