"""The held-out verifier at work beside an RL stage; what it decides is pure and stands in `r1mega.rollout.monitor`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from r1mega.errors import ConfigError, R1MegaError
from r1mega.recipe import files
from r1mega.rewards.schedule import applicable
from r1mega.rollout.evaluate import Bank, evaluate_problems
from r1mega.rollout.monitor import Check, choose_problems, describe, drift, is_hacking
from r1mega.types import EncodedPrompt

from ._learner import Learner
from ._setup import EvaluationConfig

if TYPE_CHECKING:
    from .rl import RLConfig

_log = logging.getLogger(__name__)


@dataclass
class Monitor:
    """One rank's monitor. Every check is kept in a file of the stage, so that a resumed run sees the same history and decides the same."""

    learner: Learner
    problems: Sequence[EncodedPrompt]
    checks: list[Check] = field(default_factory=list)

    @classmethod
    def of(cls, learner: Learner, held_out: Sequence[EncodedPrompt]) -> Monitor:
        """For a learner that has resumed, with the checks before its step. Raises `ConfigError` when the metric applies to no held-out problem."""
        config = learner.config
        if not config.monitor.every:
            return cls(learner, [])
        verified = [encoded for encoded in held_out if config.monitor.metric in applicable(config.reward.terms, encoded.prompt.domain)]
        if not verified:
            raise ConfigError(f"monitor.metric={config.monitor.metric}: this reward term applies to no held-out problem; choose one that does")
        chosen = [verified[index] for index in choose_problems(len(verified), config.monitor.problems, config.seed)]
        before = [_check(files.read_json(path)) for path in sorted(learner.context.dir.glob("monitor_*.json"))]
        return cls(learner, chosen, [check for check in before if check.step < learner.step])

    def watch(self) -> None:
        """Look, if it is time to, between the drawing of a rollout and its first update; add to the rollout's metrics, and act. A collective."""
        learner, config = self.learner, self.learner.config.monitor
        if not config.every or learner.step % config.every >= learner.config.updates_per_rollout:
            return
        self.checks.append(_check(learner.once(f"monitor_{learner.step:08d}", self._look)))
        flagged = self._flagged(len(self.checks))
        learner.rollout_metrics |= {"monitor/accuracy": self.checks[-1].accuracy, "monitor/flag": float(flagged)}
        if flagged:
            self._act()

    @property
    def flags(self) -> int:
        """How many checks so far found reward hacking."""
        return sum(self._flagged(count) for count in range(1, len(self.checks) + 1))

    def _flagged(self, count: int) -> bool:
        config = self.learner.config.monitor
        return is_hacking(drift(self.checks[:count], config.window), config)

    def _look(self, bank: Bank) -> dict[str, Any]:
        learner, settings = self.learner, self.learner.config.monitor
        chosen: EvaluationConfig = learner.config.evaluation
        sampling = replace(learner.sampling_now, temperature=chosen.temperature, top_p=chosen.top_p)
        results, groups = evaluate_problems(self.problems, settings.samples, generator=learner.generator, pool=learner.pool, ranks=learner.policy.ranks,
                                       sampling=sampling, seed=learner.config.seed, metric=settings.metric, bank=bank,
                                       terms_of=lambda _: (settings.metric,))
        return {"step": learner.step, "reward": learner.rollout_metrics["reward"], "rates": [result.rate for result in results],
                "regime": self._regime(learner.config), "flops_evaluation": learner.evaluation_flops(groups)}

    def _regime(self, config: RLConfig) -> list[str]:
        """The reward's make-up at this step: domains drawn, and the terms that count for them."""
        step = self.learner.step
        return [f"{domain}: {', '.join(applicable(config.reward.terms, domain, step))}" for domain in sorted(self.learner.stream.domains(step))]

    def _act(self) -> None:
        config = self.learner.config.monitor
        found = drift(self.checks, config.window)
        assert found is not None
        message = describe(self.checks, found)
        if config.action == "stop":
            raise R1MegaError(f"{message}. Stopped (monitor.action=stop); the checkpoints are kept. Lower the weight of the rising reward or end its window "
                              "earlier (until_step), or go on from here with monitor.action=warn")
        if config.action == "warn" and self.learner.context.rank == 0:
            _log.warning("%s", message)


def _check(stored: dict[str, Any]) -> Check:
    return Check(stored["step"], stored["reward"], tuple(stored["rates"]), tuple(stored["regime"]))
