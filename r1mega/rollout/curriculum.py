"""What changes at a step of RL besides the policy: which domains' prompts are drawn, and how long a completion may be."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from r1mega.errors import ConfigError, nearest
from r1mega.rewards.schedule import within
from r1mega.rollout.prompts import stream_indices
from r1mega.types import EncodedPrompt


@dataclass(frozen=True)
class StepWindow:
    """From when until when a domain's prompts are drawn, in policy updates done when a rollout begins."""

    from_step: int = 0
    until_step: int | None = None

    def __post_init__(self) -> None:
        if self.from_step < 0 or (self.until_step is not None and self.until_step <= self.from_step):
            raise ValueError(f"from_step={self.from_step}, until_step={self.until_step}: no step lies between them; expected 0 <= from_step < until_step")


@dataclass(frozen=True)
class TokenCap:
    """From rollouts that begin at this step on, completions have at most so many tokens."""

    from_step: int
    max_tokens: int


def max_tokens_at(step: int, first: int, caps: Sequence[TokenCap]) -> int:
    """The cap in force at `step`: `first` before the first of `caps`, which are in the order of their steps."""
    return next((cap.max_tokens for cap in reversed(caps) if cap.from_step <= step), first)


def check_caps(caps: Sequence[TokenCap]) -> None:
    """Raise `ConfigError` for caps below 1 or steps that do not rise."""
    steps = [0, *(cap.from_step for cap in caps)]
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ConfigError(f"max_tokens_schedule: from_step must be above 0 and rise from entry to entry, got {steps[1:]}; "
                          "before the first entry rollout.max_tokens holds")
    if wrong := [cap.max_tokens for cap in caps if cap.max_tokens < 1]:
        raise ConfigError(f"max_tokens_schedule: max_tokens={wrong[0]} must be at least 1")


class PromptStream:
    """The training prompts in the order they are drawn: epoch after epoch over the domains that are open at a step.

    A pure function of (seed, step, cursor), so that a run resumes anywhere. A domain that `schedule` does not name is always open. When the open
    domains change, the stream goes on at the same cursor over the new selection: with the new prompts mixed in, and never in lockstep with
    what was drawn before.
    """

    def __init__(self, prompts: Sequence[EncodedPrompt], schedule: Mapping[str, StepWindow], seed: int) -> None:
        self._prompts, self._schedule, self._seed = prompts, schedule, seed
        domains = {encoded.prompt.domain for encoded in prompts}
        for domain in schedule:
            if domain not in domains:
                raise ConfigError(f"prompt_schedule.{domain}: no training prompt is of this domain.{nearest(domain, domains)} "
                                  f"Domains: {', '.join(sorted(domains))}")
        self._domains = domains
        self._open: tuple[frozenset[str], list[EncodedPrompt]] = (frozenset(), [])

    def domains(self, step: int) -> frozenset[str]:
        """The domains open at `step`. Raises `ConfigError` when there is none."""
        windows = self._schedule
        found = frozenset(name for name in self._domains if name not in windows or within(step, windows[name].from_step, windows[name].until_step))
        if not found:
            raise ConfigError(f"prompt_schedule: at step {step} no domain is open; there must be prompts to draw at every step")
        return found

    def take(self, step: int, cursor: int, count: int) -> list[EncodedPrompt]:
        """The `count` prompts from place `cursor` on, for a rollout that begins at `step`."""
        opened = self.domains(step)
        if self._open[0] != opened:
            self._open = opened, [encoded for encoded in self._prompts if encoded.prompt.domain in opened]
        return [self._open[1][index] for index in stream_indices(len(self._open[1]), cursor, count, self._seed)]


def changes(windows: Iterable[tuple[int, int | None]], steps: int) -> list[int]:
    """The steps below `steps` at which one of the windows (from_step, until_step) opens or closes, with 0, ascending: what holds at
    each of them holds until the next."""
    return sorted({0} | {edge for window in windows for edge in window if edge is not None and 0 < edge < steps})
