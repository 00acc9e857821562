"""Preferences for reward models: a checkpoint answers prompts, an annotator judges the answers (R1_RECIPE 2.6, paper v2 section 3.1).

The loop over units is `PreferenceData.run`; what a unit does is `_annotating.py`, what becomes of its rows `_preferences.py`. Responses and judgements
are banked, so that a killed run continues; a response depends on seed and prompt alone, so that any layout asks the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from r1mega import hookimpl
from r1mega.config import Plugin, PluginChoice, RewardConfig, StageCommon
from r1mega.data.card import Tallies, Tally, merge
from r1mega.data.decontaminate import EVALUATION_INPUTS, DecontaminationConfig, Decontaminator, EvaluationTask, question_texts
from r1mega.data.records import read_prompts
from r1mega.errors import ConfigError, DataError, nearest
from r1mega.hookspecs import Annotator, Register
from r1mega.recipe import files
from r1mega.recipe.context import StageContext
from r1mega.split import stable_fraction
from r1mega.types import Prompt

from ._annotating import Annotating
from ._apart import apart
from ._evaluations import compared, evaluations_of
from ._preferences import write_set
from ._setup import Reporter, encode_prompts, load_tokenizer, make, make_generator, make_policy, maker_of, sampling_of


@dataclass(frozen=True)
class PreferenceDataConfig(StageCommon):
    """Which prompts, how many responses and judgements, and which pairs stay."""

    kind: Literal["helpful", "safety"] = "helpful"  # pairs, compared; or single responses, labelled
    domains: list[str] = field(default_factory=list)  # of the prompts that are answered; empty: the one called like the kind
    responses_per_prompt: int = 2
    pairs_per_prompt: int = 1  # of kind helpful; where there are more pairs of responses, the hash of their ids chooses
    judgements: int = 4  # of each pair, or of each response, which must all agree
    min_margin: float = 1.0  # of a pair's mean verdict, -2 to 2; it must be beyond
    length_tolerance: float = 0.05  # by which share the judged parts of chosen and rejected may differ in length over the set; 0: not looked at
    max_prompts: int = 0  # 0: all; else so many, chosen by the hash of their ids
    max_rows: int = 0  # 0: all; else sampling stops when there are so many. The balance of lengths may take some of them away
    prompts_per_unit: int = 64  # what is generated, judged and banked at once; per replica
    rollout: Plugin = field(default_factory=dict)
    reward: RewardConfig = field(default_factory=RewardConfig)  # for annotators that decide by a rule
    annotator: Plugin = field(default_factory=dict)
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    evaluation_tasks: dict[str, EvaluationTask] = field(default_factory=dict)  # what nothing may overlap with; composition adds the recipe's

    def __post_init__(self) -> None:
        for name, least in (("responses_per_prompt", 1), ("pairs_per_prompt", 1), ("judgements", 1), ("prompts_per_unit", 1), ("max_prompts", 0),
                            ("max_rows", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least {least}")
        there = self.responses_per_prompt * (self.responses_per_prompt - 1) // 2
        if self.kind == "helpful" and self.pairs_per_prompt > there:
            raise ConfigError(f"pairs_per_prompt={self.pairs_per_prompt}: responses_per_prompt={self.responses_per_prompt} make {there} pairs")
        if not 0 <= self.min_margin < 2:
            raise ConfigError(f"min_margin={self.min_margin}: must be at least 0 and below 2, the largest mean verdict there is")
        if not 0 <= self.length_tolerance < 1:
            raise ConfigError(f"length_tolerance={self.length_tolerance}: must be at least 0 and below 1")

    @property
    def chosen_domains(self) -> list[str]:
        return self.domains or [self.kind]


class PreferenceData:
    """Makes preference pairs, or safety verdicts, from a checkpoint's responses and an annotator's judgements."""

    version: ClassVar[str] = "2"
    inputs: ClassVar[Mapping[str, str]] = {"policy": "Checkpoint", "prompts": "PromptSet", **dict.fromkeys(EVALUATION_INPUTS, "PromptSet?")}
    outputs: ClassVar[Mapping[str, str]] = {"preferences": "PreferenceSet", "report": "Report"}

    def __init__(self, config: PreferenceDataConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Units until all prompts are answered and judged, or there are `max_rows` rows; then rank 0 merges and writes them."""
        config = self.config
        annotating = self._annotating(context)
        ranks, units = annotating.ranks, 0
        try:
            with Reporter(context, annotating.units, 0) as reporter:
                for unit in range(annotating.units):
                    metrics = annotating.unit(unit)
                    units = unit + 1
                    reporter.step(units, metrics)
                    if config.max_rows and metrics["kept"] >= config.max_rows:
                        break
        finally:
            if annotating.annotator is not None:
                annotating.annotator.close()
        tallies = merge([*ranks.gather_replicas(annotating.tallies), self._prompt_drops])

        def write() -> None:
            write_set(config, context, units, ranks.dp_size, tallies, {**annotating.provenance, **compared(config, annotating.evaluations)})

        apart(ranks, write if context.rank == 0 else None)
        metrics_of: Mapping[str, Any] = files.read_json(context.output("report") / "report.json")["metrics"]
        return metrics_of

    def _annotating(self, context: StageContext) -> Annotating:
        from r1mega.policy import artifact

        config, source = self.config, context.inputs["policy"]
        tokenizer = load_tokenizer(config, source)
        evaluations = evaluations_of(config, context)
        prompts = self._chosen(read_prompts(context.inputs["prompts"]), evaluations)
        sampling = sampling_of(config.rollout, tokenizer)
        encoded = encode_prompts(prompts, "preference", config, tokenizer, sampling.max_tokens)
        policy = make_policy(config, tokenizer, optimizer=None)
        artifact.load_artifact(policy, source)
        generator = make_generator(config.rollout, policy, tokenizer)
        annotator: Annotator | None = make("annotators", config.annotator, reward=config.reward) if policy.ranks.is_lead else None
        label = ""
        if annotator is not None:
            assert isinstance(config.annotator, PluginChoice)
            label = f"{config.annotator.name} {annotator.version}"
        provenance = {**maker_of(generator, source), "annotator": label, **(annotator.provenance if annotator else {})}
        return Annotating(config, context, policy.ranks, generator, annotator, encoded, sampling, provenance, evaluations)

    def _chosen(self, prompts: Sequence[Prompt], evaluations: Decontaminator) -> list[Prompt]:
        """The prompts to answer: those of the wanted domains, in the order of the hash of their ids, so that the first ones are a fair share.

        Conversations are left out and counted, since a row has one question, as is what overlaps with an evaluation set. Raises `DataError` where none is left.
        """
        self._prompt_drops: Tallies = {}
        domains, config = {prompt.domain for prompt in prompts}, self.config
        for domain in config.chosen_domains:
            if domain not in domains:
                raise DataError(f"no prompt is of domain '{domain}', which `domains` or `kind` asks for.{nearest(domain, domains)} Domains of the prompts: "
                                f"{', '.join(sorted(domains)) or 'none'}")
        found = []
        for prompt in prompts:
            if prompt.domain not in config.chosen_domains:
                continue
            if prompt.metadata.get("messages"):
                self._prompt_drops.setdefault(prompt.domain, Tally()).drops["prompt_conversation"] += 1
            elif evaluations.find(*question_texts(prompt)):
                self._prompt_drops.setdefault(prompt.domain, Tally()).drops["prompt_contaminated"] += 1
            else:
                found.append(prompt)
        if not found:
            raise DataError(f"all prompts of {', '.join(config.chosen_domains)} are conversations or overlap with evaluation sets; preferences are about "
                            "single questions that nothing is measured on")
        found.sort(key=lambda prompt: (stable_fraction(f"judged: {prompt.id}", config.seed), prompt.id))
        return found[: config.max_prompts or None]


@hookimpl
def register_stages(register: Register) -> None:
    register("preference_data", PreferenceData, config=PreferenceDataConfig)
