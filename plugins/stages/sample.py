"""Rejection sampling: several answers per prompt, the correct and readable ones kept (R1_RECIPE 2.1 and 2.4).

The loop over rounds is `Sample.run`; what a round keeps is `_sampler.py`, what becomes of it `_rewrite.py` (on every replica) and `_harvest.py` (on rank
0). Units of work are banked until the driver has recorded the set, so that a killed run continues, and a sample depends on seed, round and prompt alone,
so that any layout makes the same set. Text stays on disk: memory grows with the number of prompts, not with what is said.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from r1mega import hookimpl
from r1mega.config import Plugin, RewardConfig, StageCommon
from r1mega.data.card import Tallies, Tally, merge
from r1mega.data.decontaminate import EVALUATION_INPUTS, Decontaminator, EvaluationFile, EvaluationTask, TaskDecontaminationConfig, question_texts
from r1mega.data.dedup import DedupConfig
from r1mega.data.filters import FilterConfig
from r1mega.data.language import check_languages
from r1mega.data.records import read_prompts
from r1mega.errors import ConfigError, DataError, nearest
from r1mega.hookspecs import Register
from r1mega.policy import flops
from r1mega.recipe import files
from r1mega.recipe.context import StageContext
from r1mega.rewards.pool import RewardPool
from r1mega.rewards.schedule import check_measurable
from r1mega.split import stable_fraction
from r1mega.types import Prompt

from ._apart import apart
from ._evaluations import compared, evaluations_of
from ._harvest import distinct, merged, write_set, write_shard
from ._rewrite import Rewriting
from ._sampler import Sampler, check_deciders
from ._setup import Reporter, encode_prompts, load_tokenizer, make_generator, make_policy, make_task, maker_of, sampling_of


@dataclass(frozen=True)
class SampleConfig(StageCommon):
    """How many samples, which are correct, which are fit."""

    samples_per_round: int = 4  # per prompt
    wanted_per_prompt: int = 1
    max_rounds: int = 4  # a prompt is sampled until it has what is wanted, or so often
    max_prompts: int = 0  # 0: all; else so many, chosen by the hash of their ids, in their order
    prompts_per_unit: int = 64  # what is generated, scored and banked at once; per replica
    metric: str = "accuracy"  # the reward term that says whether a sample is correct
    threshold: float = 1.0  # the term's value from which it is
    judge: str = ""  # the term that says so for prompts of `judge_domains` and for those without a reference answer
    judge_domains: list[str] = field(default_factory=list)
    selection: Literal["shortest", "random"] = "shortest"  # which are kept where more are fit than wanted; random is fixed by the seed
    parquet: bool = True  # samples.parquet too, where pyarrow is installed
    filters: FilterConfig = field(default_factory=FilterConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    decontamination: TaskDecontaminationConfig = field(default_factory=TaskDecontaminationConfig)
    evaluation_tasks: dict[str, EvaluationTask] = field(default_factory=dict)  # what nothing may overlap with; composition adds the recipe's
    decontaminate_against: dict[str, EvaluationFile] = field(default_factory=dict)  # by a name of your choice
    rollout: Plugin = field(default_factory=dict)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rewriter: Plugin = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("samples_per_round", "wanted_per_prompt", "max_rounds", "prompts_per_unit"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        for key in ("metric", "judge"):
            term = getattr(self, key)
            if self.reward.terms and (term or key == "metric") and term not in self.reward.terms:
                raise ConfigError(f"{key}='{term}': there is no such reward term.{nearest(term, self.reward.terms)} "
                                  f"reward.terms: {', '.join(self.reward.terms)}")
        if self.judge_domains and not self.judge:
            raise ConfigError(f"judge_domains={self.judge_domains} needs judge=<a term of reward.terms>")


class Sample:
    """Samples a checkpoint and keeps what is correct, readable, new and not in any evaluation set."""

    version: ClassVar[str] = "3"
    inputs: ClassVar[Mapping[str, str]] = {"policy": "Checkpoint", "prompts": "PromptSet?", **dict.fromkeys(EVALUATION_INPUTS, "PromptSet?")}
    outputs: ClassVar[Mapping[str, str]] = {"samples": "SampleSet", "report": "Report"}

    def __init__(self, config: SampleConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Rounds until every prompt has its samples; then each replica's lead rewrites its own, and rank 0 merges and writes them."""
        sampler = self._sampler(context)
        ranks, config = sampler.ranks, self.config
        try:
            with Reporter(context, config.max_rounds, 0) as reporter:
                for number in range(config.max_rounds):
                    metrics = sampler.round(number)
                    if metrics is None:
                        break
                    reporter.step(number + 1, metrics)
        finally:
            if sampler.pool is not None:
                sampler.pool.close()
        sampler.select()

        def rewrite() -> None:
            rewriting = Rewriting(config, context, ranks.dp_rank, {work.item.cursor: work.prompt for work in sampler.works}, sampler.evaluations,
                                  sampler.tallies, sampler.contaminated)
            write_shard(context, ranks.dp_rank, rewriting.rows(sampler.rows()))

        apart(ranks, rewrite if ranks.is_lead else None)
        tallies = merge([*ranks.gather_replicas(sampler.tallies), self._prompt_drops])
        contaminated = sum(ranks.gather_replicas(sampler.contaminated), Counter[str]()) + self._contaminated

        def write() -> None:
            write_set(config, context, distinct(merged(context, ranks.dp_size), tallies), tallies, contaminated,
                      {**sampler.maker, **compared(config, sampler.evaluations)})

        apart(ranks, write if context.rank == 0 else None)
        metrics_of: Mapping[str, Any] = files.read_json(context.output("report") / "report.json")["metrics"]
        return {**metrics_of, **(sampler.meter.metrics() if sampler.meter else {})}

    def _sampler(self, context: StageContext) -> Sampler:
        from r1mega.policy import artifact

        config, source = self.config, context.inputs["policy"]
        task, tokenizer = make_task(config), load_tokenizer(config, source)
        evaluations = evaluations_of(config, context, task)
        prompts = self._clean(read_prompts(context.inputs["prompts"]) if "prompts" in context.inputs else task.prompts("train"), evaluations)
        sampling = sampling_of(config.rollout, tokenizer)
        encoded = encode_prompts(fair_share(prompts, config.max_prompts, config.seed), "train", config, tokenizer, sampling.max_tokens)
        check_prompts(config, [each.prompt for each in encoded])
        policy = make_policy(config, tokenizer, optimizer=None)
        artifact.load_artifact(policy, source)
        pool = RewardPool.from_config(config.reward) if policy.ranks.is_lead else None
        generator = make_generator(config.rollout, policy, tokenizer)
        maker = maker_of(generator, source)
        return Sampler(config, context, policy.ranks, generator, pool, encoded, sampling, evaluations, maker,
                       meter=None if "model" in maker else flops.Meter.of(policy))

    def _clean(self, prompts: Sequence[Prompt], evaluations: Decontaminator) -> list[Prompt]:
        """The prompts that no evaluation set has; the others are counted."""
        self._prompt_drops: Tallies = {}
        self._contaminated: Counter[str] = Counter()
        kept = []
        for prompt in prompts:
            if found := evaluations.find(*question_texts(prompt)):
                self._contaminated[found] += 1
                self._prompt_drops.setdefault(prompt.domain, Tally()).drops["prompt_contaminated"] += 1
            else:
                kept.append(prompt)
        if not kept:
            raise DataError(f"all {len(prompts)} prompts overlap with evaluation sets, first with {', '.join(list(self._contaminated)[:3])}; sample other "
                            "prompts, or set decontamination.common_share below 1 if they share a template")
        return kept


def fair_share(prompts: Sequence[Prompt], most: int, seed: int) -> Sequence[Prompt]:
    """At most `most` of the prompts (0: all), in their order. The hash of their ids chooses: the first rows of a file may all be of one domain."""
    if not most or len(prompts) <= most:
        return prompts
    fractions = [stable_fraction(f"sampled: {prompt.id}", seed) for prompt in prompts]
    chosen = heapq.nsmallest(most, range(len(prompts)), key=lambda index: (fractions[index], index))
    return [prompts[index] for index in sorted(chosen)]


def check_prompts(config: SampleConfig, prompts: Sequence[Prompt]) -> None:
    """Raise `ConfigError` for prompts that no reward decides, or whose language cannot be measured where it has to be."""
    check_deciders(config, prompts)
    if config.filters.min_language_share:
        check_languages(prompts, "filters.min_language_share")
    check_measurable(config.reward.terms, prompts)


@hookimpl
def register_stages(register: Register) -> None:
    register("sample", Sample, config=SampleConfig)
