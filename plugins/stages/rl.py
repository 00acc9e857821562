"""Reinforcement learning from verifiable rewards: R1-Zero, and with other settings every later RL stage.

The loop is `RL.run`; one rollout is `Learner.collect`, one policy update `Learner.update`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from r1mega import hookimpl
from r1mega.config import CheckpointConfig, MismatchConfig, OptimizerConfig, Plugin, RewardConfig, StageCommon
from r1mega.data.decontaminate import EVALUATION_INPUTS, EvaluationTask, TaskDecontaminationConfig, problems, question_texts
from r1mega.data.records import read_prompts
from r1mega.errors import ConfigError, nearest
from r1mega.hookspecs import Register, Task
from r1mega.recipe.artifacts import Manifest
from r1mega.recipe.context import StageContext
from r1mega.rewards.schedule import check_covered, check_measurable
from r1mega.rewards.scorers import ModelTerms, build_scorers, split_terms
from r1mega.rollout.curriculum import PromptStream, StepWindow, TokenCap, changes, check_caps
from r1mega.rollout.evaluate import Bank, evaluate
from r1mega.rollout.monitor import MonitorConfig
from r1mega.rollout.samples import write_samples
from r1mega.split import text_id
from r1mega.types import EncodedPrompt, Prompt

from ._evaluations import Screen, evaluations_of
from ._learner import Learner
from ._monitor import Monitor
from ._setup import (
    EvaluationConfig,
    Reporter,
    encode_prompts,
    encode_split,
    load_tokenizer,
    make,
    make_generator,
    make_policy,
    make_task,
    sampling_of,
    seal_checkpoint,
)

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

REWARD_MODELS = ("helpful", "safety")  # optional inputs, each read by the reward term of its name


@dataclass(frozen=True)
class RLConfig(StageCommon):
    """A step is one policy update; a rollout feeds `updates_per_rollout` of them (R1_RECIPE section 1)."""

    steps: int = 10400
    max_flops: float | None = None  # ends the run after the first step at which `model_flops` (training, log-probs, generation) reach it; None: never
    prompts_per_rollout: int = 512
    group_size: int = 16  # G
    updates_per_rollout: int = 16  # minibatches of a rollout, one inner epoch
    prompts_per_unit: int = 64  # what is banked at once; per replica
    prompt_schedule: dict[str, StepWindow] = field(default_factory=dict)  # domain -> when its prompts are drawn; others always are
    max_tokens_schedule: list[TokenCap] = field(default_factory=list)  # later caps on the length; before the first: rollout.max_tokens
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
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    decontamination: TaskDecontaminationConfig = field(default_factory=TaskDecontaminationConfig)
    evaluation_tasks: dict[str, EvaluationTask] = field(default_factory=dict)  # what no prompt may overlap with; composition adds the recipe's

    def __post_init__(self) -> None:
        for name in ("steps", "prompts_per_rollout", "group_size", "updates_per_rollout", "prompts_per_unit", "micro_batch_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.max_flops is not None and not self.max_flops > 0:
            raise ConfigError(f"max_flops={self.max_flops}: must be above 0, or null for no limit")
        dp = self.parallel.data_parallel_size
        if self.prompts_per_rollout % dp:
            raise ConfigError(f"prompts_per_rollout={self.prompts_per_rollout} must be a multiple of parallel.data_parallel_size={dp}: "
                              "each replica makes the same share")
        if self.prompts_per_rollout * self.group_size % self.updates_per_rollout:
            raise ConfigError(f"updates_per_rollout={self.updates_per_rollout} must divide the rollout's samples (prompts_per_rollout="
                              f"{self.prompts_per_rollout} x group_size={self.group_size})")
        check_caps(self.max_tokens_schedule)
        self._check_room()
        for key, metric in (("evaluation", self.evaluation.metric), ("monitor", self.monitor.metric)):
            if self.reward.terms and metric not in self.reward.terms and (key == "evaluation" or self.monitor.every):
                raise ConfigError(f"{key}.metric={metric}: no such reward term.{nearest(metric, self.reward.terms)} Terms: {', '.join(self.reward.terms)}")

    def _check_room(self) -> None:
        """Whether the longest completions of the schedule fit: into the model's context and into a micro-batch, each with a prompt before them."""
        model = getattr(self.model, "config", None)
        limits = {"model.max_position_embeddings": getattr(model, "max_position_embeddings", None), "micro_batch_tokens": self.micro_batch_tokens}
        longest = max((cap.max_tokens for cap in self.max_tokens_schedule), default=0)
        for key, limit in limits.items():
            if limit is not None and longest >= limit:
                raise ConfigError(f"max_tokens_schedule: completions of {longest} tokens and their prompts need more than {key}={limit}; raise that, "
                                  "or lower max_tokens")


class RL:
    """Group-relative reinforcement learning with verifiable rewards (R1-Zero and the RL stages of R1).

    `prompts` are drawn in addition to the task's; `helpful` and `safety` are for the reward terms of these names; `budget` is a checkpoint whose
    training's compute is the most that this one may spend (with `max_flops`, the smaller counts): a fair comparison, as of a student by distillation
    and by RL alone. Prompts that overlap with what the recipe measures on are left out and counted.
    """

    version: ClassVar[str] = "3"
    inputs: ClassVar[Mapping[str, str]] = {"policy": "Checkpoint", "prompts": "PromptSet?", "budget": "Checkpoint?",
                                           **dict.fromkeys(REWARD_MODELS, "RewardModel?"), **dict.fromkeys(EVALUATION_INPUTS, "PromptSet?")}
    measured_on: ClassVar[Sequence[str]] = ()  # always the task's test split
    outputs: ClassVar[Mapping[str, str]] = {"checkpoint": "Checkpoint"}

    def __init__(self, config: RLConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Rollouts and updates until `steps` updates are done; resumes from the newest checkpoint and the ledger."""
        learner = self._learner(context)
        with learner, Reporter(context, self.config.steps, learner.step) as reporter:
            monitor = Monitor.of(learner, self._held_out)
            before = learner.once("evaluation_before", partial(self._evaluate, learner))
            while not learner.ended:
                if self._evaluation_due(learner.step):
                    learner.once(f"evaluation_{learner.step:08d}", partial(self._evaluate, learner))
                rollout = learner.collect()
                monitor.watch()
                for minibatch in learner.minibatches(rollout):
                    metrics = learner.update(minibatch)
                    reporter.step(learner.step, metrics)
                    if learner.ended:
                        break
                learner.end_rollout()
            after = learner.once("evaluation_after", partial(self._evaluate, learner))
        learner.export()
        watched = {"monitor_flags": monitor.flags} if self.config.monitor.every else {}
        ends = self._prompts.metrics | after | {f"{name}_before": value for name, value in before.items() if name != "flops_evaluation"}
        return ends | {"steps": learner.step, "skipped_updates": learner.skipped + learner.policy.skipped_updates} | learner.flops_metrics() | watched

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
        longest = max([sampling.max_tokens, *(cap.max_tokens for cap in config.max_tokens_schedule)])
        self._prompts = Screen("prompts", evaluations_of(config, context, task))
        train = encode_prompts(_training_prompts(task, context.inputs.get("prompts"), self._prompts), "train", config, tokenizer, longest)
        self._held_out = encode_split(task, "test", config, tokenizer, longest, config.evaluation.max_problems)
        check_measurable(config.reward.terms, [encoded.prompt for encoded in (*train, *self._held_out)])
        terms = TrainingTerms(config.moe_aux_loss_coeff, config.moe_router_bias_update_rate, config.mtp_loss_scaling_factor, mtp_detach=True)
        models = {name: context.inputs[name] for name in REWARD_MODELS if name in context.inputs}
        policy = make_policy(config, tokenizer, optimizer=config.optimizer, steps=config.steps, terms=terms,
                             temperature=sampling.temperature or 1.0, reward_head="score" if models else "none")
        artifact.load_artifact(policy, context.inputs["policy"])
        scored = split_terms(config.reward)[1]
        learner = Learner(config=config, context=context, policy=policy, generator=make_generator(config.rollout, policy, tokenizer),
                          algorithm=make("algorithms", config.algorithm), stream=self._stream(train), sampling=sampling,
                          model_terms=ModelTerms(scored, build_scorers(scored, models, policy, tokenizer), policy.ranks),
                          seal=lambda folder: seal_checkpoint(folder, tokenizer), max_flops=compute_limit(config.max_flops, context.inputs.get("budget")))
        learner.resume()
        return learner

    def _stream(self, train: Sequence[EncodedPrompt]) -> PromptStream:
        """The stream of prompts; checked that at every step there is one to draw and a reward for it."""
        config = self.config
        stream = PromptStream(train, config.prompt_schedule, config.seed)
        windows = [(window.from_step, window.until_step) for window in config.prompt_schedule.values()]
        windows += [(term.from_step, term.until_step) for term in config.reward.terms.values()]
        for step in changes(windows, config.steps):
            check_covered(config.reward.terms, stream.domains(step), step)
        return stream

    def _evaluate(self, learner: Learner, bank: Bank) -> dict[str, Any]:
        """The held-out problems under the current weights, by the rules alone: a reward model does not judge what it has trained."""
        settings, step = self.config.evaluation, learner.step
        sampling = replace(learner.sampling_now, temperature=settings.temperature, top_p=settings.top_p)
        metrics, groups = evaluate(self._held_out, settings.samples, generator=learner.generator, pool=learner.pool, ranks=learner.policy.ranks,
                                   sampling=sampling, seed=self.config.seed, metric=settings.metric, bank=bank)
        if learner.writes:
            write_samples(learner.context.rollouts / "samples_held_out.jsonl", step, groups, 4 * self.config.samples_logged)
        return metrics | {"flops_evaluation": learner.evaluation_flops(groups)}


def _training_prompts(task: Task, folder: Path | None, screen: Screen) -> list[Prompt]:
    """The task's training prompts, and after them those of a connected `PromptSet`, without those that do not pass the screen.

    Raises `ConfigError` where a connected one that passes asks for a held-out problem of the task all the same, now or in an earlier turn: the screen may
    be told to leave the test split out.
    """
    more = read_prompts(folder) if folder is not None else []
    prompts = screen.clean([*task.prompts("train"), *more])
    if screen.contaminated:
        _log.warning("%d prompts overlap with evaluation sets and are left out: %s", screen.contaminated.total(), dict(screen.sets))
    if more:
        held_out = {text_id(problem) for _, problem in problems(task.prompts("test"))}
        passed = {id(prompt) for prompt in prompts}
        if leaked := [prompt.id for prompt in more if id(prompt) in passed and held_out.intersection(map(text_id, question_texts(prompt)))]:
            raise ConfigError(f"input 'prompts': {len(leaked)} of its prompts are held-out problems of the task, the first is '{leaked[0]}'; "
                              "connect a set without them")
    return prompts


def compute_limit(max_flops: float | None, budget: Path | None) -> float | None:
    """The model FLOPs after which to end: `max_flops`, or what the stage spent that made the artifact in folder `budget`, whichever is less; None: no limit.

    Raises `ConfigError` for an artifact whose stage counts none.
    """
    if budget is None:
        return max_flops
    manifest = Manifest.load(budget.parents[1])
    spent = manifest.metrics.get("model_flops") if manifest else None
    if not spent:
        raise ConfigError(f"input 'budget': the stage that made {budget} has counted no FLOPs; connect a checkpoint of rl, sft or pretrain, or set max_flops")
    return float(spent) if max_flops is None else min(max_flops, float(spent))


@hookimpl
def register_stages(register: Register) -> None:
    register("rl", RL, config=RLConfig)
