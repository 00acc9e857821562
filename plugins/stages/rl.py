"""Reinforcement learning from verifiable rewards: R1-Zero, and with other settings every later RL stage.

The loop is `RL.run`; one rollout is `Learner.collect`, one policy update `Learner.update`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from r1mega import hookimpl
from r1mega.config import CheckpointConfig, MismatchConfig, OptimizerConfig, Plugin, RewardConfig, StageCommon
from r1mega.errors import ConfigError
from r1mega.hookspecs import Register
from r1mega.recipe.context import StageContext
from r1mega.rollout.evaluate import evaluate
from r1mega.rollout.samples import write_samples

from ._learner import Learner
from ._setup import EvaluationConfig, Reporter, encode_split, load_tokenizer, make, make_generator, make_policy, make_task, sampling_of, seal_checkpoint


@dataclass(frozen=True)
class RLConfig(StageCommon):
    """A step is one policy update; a rollout feeds `updates_per_rollout` of them (R1_RECIPE section 1)."""

    steps: int = 10400
    prompts_per_rollout: int = 512
    group_size: int = 16  # G
    updates_per_rollout: int = 16  # minibatches of a rollout, one inner epoch
    prompts_per_unit: int = 64  # what is banked at once; per replica
    reference_every: int = 400  # steps after which the reference policy becomes the latest one; 0: never
    micro_batch_tokens: int = 65536  # tokens of one packed micro-batch, at least the longest sequence
    max_resamples: int = 8  # with dynamic sampling: rollouts tried for one step's worth of useful groups
    moe_aux_loss_coeff: float = 0.0
    moe_router_bias_update_rate: float = 0.0  # 0 freezes the expert bias, as at the end of pre-training
    mtp_loss_scaling_factor: float = 0.0  # above 0: on responses, detached from the trunk
    samples_logged: int = 8  # per rollout, in rollouts/samples.jsonl
    algorithm: Plugin = field(default_factory=dict)
    rollout: Plugin = field(default_factory=dict)
    reward: RewardConfig = field(default_factory=RewardConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mismatch: MismatchConfig = field(default_factory=MismatchConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "prompts_per_rollout", "group_size", "updates_per_rollout", "prompts_per_unit", "micro_batch_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        dp = self.parallel.data_parallel_size
        if self.prompts_per_rollout % dp:
            raise ConfigError(f"prompts_per_rollout={self.prompts_per_rollout} must be a multiple of parallel.data_parallel_size={dp}: "
                              "each replica makes the same share")
        if self.prompts_per_rollout * self.group_size % self.updates_per_rollout:
            raise ConfigError(f"updates_per_rollout={self.updates_per_rollout} must divide the rollout's samples (prompts_per_rollout="
                              f"{self.prompts_per_rollout} x group_size={self.group_size})")


class RL:
    """Group-relative reinforcement learning with verifiable rewards (R1-Zero and the RL stages of R1)."""

    version: ClassVar[str] = "1"
    inputs: ClassVar[Mapping[str, str]] = {"policy": "Checkpoint"}
    outputs: ClassVar[Mapping[str, str]] = {"checkpoint": "Checkpoint"}

    def __init__(self, config: RLConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Rollouts and updates until `steps` updates are done; resumes from the newest checkpoint and the ledger."""
        learner = self._learner(context)
        with learner, Reporter(context, self.config.steps, learner.step) as reporter:
            before = learner.once("evaluation_before", lambda: self._evaluate(learner, context, 0))
            while learner.step < self.config.steps:
                if self._evaluation_due(learner.step):
                    learner.once(f"evaluation_{learner.step:08d}", lambda: self._evaluate(learner, context, learner.step))
                groups = learner.collect()
                for minibatch in learner.minibatches(groups):
                    metrics = learner.update(minibatch)
                    reporter.step(learner.step, metrics)
                learner.end_rollout()
            after = self._evaluate(learner, context, learner.step)
        learner.export()
        return after | {f"{name}_before": value for name, value in before.items()} | {"steps": learner.step, "skipped_updates": learner.skipped}

    def _evaluation_due(self, step: int) -> bool:
        """Whether the first rollout that begins at or after a multiple of `evaluation.every` steps begins now."""
        every = self.config.evaluation.every
        return bool(every and step) and step % every < self.config.updates_per_rollout

    def _learner(self, context: StageContext) -> Learner:
        from r1mega.policy import artifact
        from r1mega.policy.build import TrainingTerms

        config = self.config
        task, tokenizer = make_task(config), load_tokenizer(config, context.inputs["policy"])
        sampling = sampling_of(config.rollout, tokenizer)
        train = encode_split(task, "train", config, tokenizer, sampling.max_tokens)
        self._held_out = encode_split(task, "test", config, tokenizer, sampling.max_tokens, config.evaluation.max_problems)
        terms = TrainingTerms(config.moe_aux_loss_coeff, config.moe_router_bias_update_rate, config.mtp_loss_scaling_factor, mtp_detach=True)
        policy = make_policy(config, tokenizer, optimizer=config.optimizer, steps=config.steps, terms=terms,
                             temperature=sampling.temperature or 1.0)
        artifact.load_artifact(policy, context.inputs["policy"])
        learner = Learner(config=config, context=context, policy=policy, generator=make_generator(config.rollout, policy, tokenizer),
                          algorithm=make("algorithms", config.algorithm), train=train, sampling=sampling,
                          seal=lambda folder: seal_checkpoint(folder, tokenizer))
        self._tokenizer = tokenizer
        learner.resume()
        return learner

    def _evaluate(self, learner: Learner, context: StageContext, step: int) -> dict[str, Any]:
        """The held-out problems under the current weights."""
        settings = self.config.evaluation
        sampling = sampling_of(self.config.rollout, self._tokenizer, temperature=settings.temperature, top_p=settings.top_p)
        metrics, groups = evaluate(self._held_out, settings.samples, generator=learner.generator, pool=learner.pool, ranks=learner.policy.ranks,
                                   sampling=sampling, seed=self.config.seed, metric=settings.metric)
        if learner.writes:
            write_samples(context.rollouts / "samples_held_out.jsonl", step, groups, 4 * self.config.samples_logged)
        return metrics


@hookimpl
def register_stages(register: Register) -> None:
    register("rl", RL, config=RLConfig)
