"""Measure a checkpoint on the task's held-out problems, or on prompts that another stage made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from r1mega import hookimpl
from r1mega.config import Plugin, RewardConfig, StageCommon
from r1mega.data.records import read_prompts
from r1mega.hookspecs import Register, Tokenizer
from r1mega.recipe.context import StageContext
from r1mega.recipe.files import read_json, write_json
from r1mega.rewards.pool import RewardPool
from r1mega.rollout.evaluate import Bank, evaluate_problems
from r1mega.rollout.metrics_eval import ProblemResult, summarise
from r1mega.rollout.samples import sample_records, write_samples
from r1mega.types import EncodedPrompt

from ._setup import EvaluationConfig, bank_of, encode_prompts, encode_split, load_tokenizer, make_generator, make_policy, make_task, sampling_of


@dataclass(frozen=True)
class EvaluateConfig(StageCommon):
    """Which generator, which rewards, how many samples."""

    rollout: Plugin = field(default_factory=dict)
    reward: RewardConfig = field(default_factory=RewardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    samples_logged: int = 32


class Evaluate:
    """pass@1, pass@k, cons@k, length, format, language and refusals of a checkpoint on held-out problems or a benchmark (`benchmark=...`).

    A connected `prompts` takes the place of the task's test split.
    The report's `report.json` holds the metrics, `problems_detail` (each problem's id, domain and share of correct samples, for paired comparisons between
    checkpoints) and `samples` (at most `samples_logged` of each replica, as `rollout.samples` writes them).
    """

    version: ClassVar[str] = "2"
    inputs: ClassVar[Mapping[str, str]] = {"policy": "Checkpoint", "prompts": "PromptSet?"}
    outputs: ClassVar[Mapping[str, str]] = {"report": "Report"}
    measured_on: ClassVar[Sequence[str]] = ("prompts",)  # else the task's test split

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        from r1mega.policy import artifact

        config = self.config
        tokenizer = load_tokenizer(config, context.inputs["policy"])
        policy = make_policy(config, tokenizer, optimizer=None)
        report, bank = context.output("report") / "report.json", bank_of(context, config.evaluation, "report")
        if policy.ranks.max_over_ranks(float(context.rank == 0 and report.is_file())):  # a killed attempt had come so far
            return _finished(report, bank, context)
        artifact.load_artifact(policy, context.inputs["policy"])
        generator = make_generator(config.rollout, policy, tokenizer)
        settings = config.evaluation
        sampling = sampling_of(config.rollout, tokenizer, temperature=settings.temperature, top_p=settings.top_p)
        prompts = self._prompts(context, tokenizer, sampling.max_tokens)
        pool = RewardPool.from_config(config.reward) if policy.ranks.is_lead else None
        try:
            results, groups = evaluate_problems(prompts, settings.samples, generator=generator, pool=pool, ranks=policy.ranks, sampling=sampling,
                                                seed=config.seed, metric=settings.metric, bank=bank)
        finally:
            if pool is not None:
                pool.close()
        metrics = summarise(results, config.seed)
        shown = policy.ranks.gather_replicas(sample_records(groups, config.samples_logged))
        if policy.ranks.dp_rank == 0 and policy.ranks.is_lead:
            context.rollouts.mkdir(parents=True, exist_ok=True)
            write_samples(context.rollouts / "samples.jsonl", 0, groups, config.samples_logged)
        policy.ranks.barrier()  # every rank is done with the bank
        if context.rank == 0:
            report.parent.mkdir(parents=True, exist_ok=True)
            samples = [record for part in shown for record in part]
            write_json(report, {**metrics, "problems_detail": _detail(results), "samples": samples}, context.check_epoch)
            bank.drop()
        policy.ranks.barrier()
        return metrics

    def _prompts(self, context: StageContext, tokenizer: Tokenizer, max_tokens: int) -> list[EncodedPrompt]:
        config, limit = self.config, self.config.evaluation.max_problems
        if "prompts" not in context.inputs:
            return encode_split(make_task(config), "test", config, tokenizer, max_tokens, limit)
        prompts = read_prompts(context.inputs["prompts"])
        return encode_prompts(prompts[:limit] if limit else prompts, "given", config, tokenizer, max_tokens)


def _finished(report: Path, bank: Bank, context: StageContext) -> dict[str, Any]:
    """The metrics of a report that is written; its bank is needed no more."""
    if context.rank == 0:
        context.check_epoch()
        bank.drop()
    return {name: value for name, value in read_json(report).items() if name not in ("problems_detail", "samples")}


def _detail(results: Sequence[ProblemResult]) -> list[dict[str, Any]]:
    return [{"id": result.id, "domain": result.domain, "pass_rate": result.rate if result.correct else None, "consensus": result.consensus}
            for result in results]


@hookimpl
def register_stages(register: Register) -> None:
    register("evaluate", Evaluate, config=EvaluateConfig)
