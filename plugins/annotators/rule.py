"""A reward as the judge of preferences: the difference of two scores, or one score, held against thresholds. For worlds whose preferences follow a
rule, and for judging with any scalar reward without a server."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from r1mega import hookimpl, plugins
from r1mega.config import RewardConfig
from r1mega.data.preferences import Assessment, Comparison
from r1mega.errors import ConfigError, nearest
from r1mega.hookspecs import Register
from r1mega.rewards.pool import RewardPool
from r1mega.rewards.schedule import applicable
from r1mega.types import Prompt, RewardSample

_ROUNDING = 1e-9  # 1 - 0.8 is as much as 0.2


@dataclass(frozen=True)
class RuleConfig:
    """Which reward decides, and from which score on."""

    metric: str  # the term of the stage's `reward.terms` that decides
    better: float = 0.1  # a score higher by at least so much: A>B
    much_better: float = 0.2  # by at least so much: A>>B. All judgements of a pair agree: only these pass the paper's margin of 1
    safe_from: float = 0.5  # a score of at least so much: safe
    unsafe_below: float = 0.5  # below: unsafe; between the two there is no verdict

    def __post_init__(self) -> None:
        if not 0 < self.better <= self.much_better:
            raise ConfigError(f"annotator.better={self.better}, annotator.much_better={self.much_better}: expected 0 < better <= much_better")
        if self.unsafe_below > self.safe_from:
            raise ConfigError(f"annotator.unsafe_below={self.unsafe_below} must not be above annotator.safe_from={self.safe_from}")


class Rule:
    """Judges by one reward term: of two responses the one with the higher score is better, one with a high score is safe."""

    version: ClassVar[str] = "1"

    def __init__(self, config: RuleConfig, *, reward: RewardConfig) -> None:
        """Raises `ConfigError` where the stage has no such reward term."""
        if config.metric not in reward.terms:
            raise ConfigError(f"annotator.metric='{config.metric}': there is no such reward term.{nearest(config.metric, reward.terms)} reward.terms: "
                              f"{', '.join(reward.terms) or 'none; choose them with reward=<a file of conf/reward>'}")
        self._config, self._terms = config, {config.metric: reward.terms[config.metric]}
        self._pool = RewardPool.from_config(dataclasses.replace(reward, terms=self._terms))
        plugin = plugins.load().registry.get("rewards", reward.terms[config.metric].name)
        self.provenance: Mapping[str, Any] = {"annotator_reward": plugin.name, "annotator_reward_version": plugin.version}

    def compare(self, comparisons: Sequence[Comparison]) -> Sequence[str | None]:
        scores = self._scores((comparison.prompt, text) for comparison in comparisons for text in (comparison.a, comparison.b))
        return [self._preferred(scores[comparison.prompt.id, comparison.a] - scores[comparison.prompt.id, comparison.b]) for comparison in comparisons]

    def assess(self, assessments: Sequence[Assessment]) -> Sequence[bool | None]:
        scores = self._scores((assessment.prompt, assessment.response) for assessment in assessments)
        return [self._safe(scores[assessment.prompt.id, assessment.response]) for assessment in assessments]

    def close(self) -> None:
        self._pool.close()

    def _scores(self, responses: Iterable[tuple[Prompt, str]]) -> dict[tuple[str, str], float]:
        """(prompt id, response) -> score; NaN where the reward failed. Each is scored once, however often it is asked about."""
        distinct = {(prompt.id, text): prompt for prompt, text in responses}
        for number, ((_, text), prompt) in enumerate(distinct.items()):
            if not applicable(self._terms, prompt.domain):
                raise ConfigError(f"annotator.metric='{self._config.metric}' does not apply to prompts of domain '{prompt.domain}'; add the domain to "
                                  f"reward.terms.{self._config.metric}.domains, or leave such prompts out by the stage's `domains`")
            sample = RewardSample(prompt.question, text, prompt.answer, prompt.domain, prompt.language, prompt.metadata)
            self._pool.submit(str(number), sample, list(self._terms))
        verdicts = {verdict.key: verdict for verdict in self._pool.finish()}
        return {key: verdicts[str(number)].parts[self._config.metric] for number, key in enumerate(distinct)}

    def _preferred(self, difference: float) -> str | None:
        """The verdict on A's score less B's; None for NaN."""
        if math.isnan(difference):
            return None
        size = abs(difference) + _ROUNDING
        if size < self._config.better:
            return "A=B"
        sign = ">>" if size >= self._config.much_better else ">"
        return f"A{sign}B" if difference > 0 else f"B{sign}A"

    def _safe(self, score: float) -> bool | None:
        """The verdict on one score; None for NaN, and between the thresholds."""
        if score + _ROUNDING >= self._config.safe_from:
            return True
        return False if score < self._config.unsafe_below else None


@hookimpl
def register_annotators(register: Register) -> None:
    register("rule", Rule, config=RuleConfig)
