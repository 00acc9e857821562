"""Which reward terms count for a prompt: by its domain, and by the step at which the rollout begins.

The paper's second RL stage is the reason (R1_RECIPE 2.5): its reward sums rule, preference and language terms (v2 Eq. 8), of which those of the
prompt's domain apply, and the preference terms count in the last 400 of 1,700 steps only. All samples of a group share their prompt, hence
their terms, and so their rewards can be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from r1mega.config import RewardTerm
from r1mega.data.language import check_languages
from r1mega.errors import ConfigError
from r1mega.types import Prompt


def within(step: int, from_step: int, until_step: int | None) -> bool:
    """Whether from_step <= step < until_step (None: no end)."""
    return from_step <= step and (until_step is None or step < until_step)


def applicable(terms: Mapping[str, RewardTerm], domain: str, step: int | None = None) -> tuple[str, ...]:
    """The names of the terms that count for a prompt of `domain` in a rollout that begins after `step` policy updates, in the config's order.

    Without a step (evaluations, sampling) the windows of steps do not matter.
    """
    return tuple(name for name, term in terms.items()
                 if (not term.domains or domain in term.domains) and (step is None or within(step, term.from_step, term.until_step)))


def check_covered(terms: Mapping[str, RewardTerm], domains: Collection[str], step: int) -> None:
    """Raise `ConfigError` for a domain whose prompts no term scores at `step`: they would cost their generation and teach nothing."""
    for domain in sorted(domains):
        if not applicable(terms, domain, step):
            raise ConfigError(f"reward.terms: at step {step} prompts of domain '{domain}' are drawn but no term applies to them; add the domain to a "
                              f"term's `domains`, widen its from_step/until_step, or draw the domain at other steps (prompt_schedule.{domain})")


def check_measurable(terms: Mapping[str, RewardTerm], prompts: Sequence[Prompt]) -> None:
    """Raise `ConfigError` for prompts whose language a language-consistency term that counts for them does not know."""
    for name, term in terms.items():
        if term.name == "language_consistency":
            check_languages((prompt for prompt in prompts if name in applicable(terms, prompt.domain)), f"reward.terms.{name}")
