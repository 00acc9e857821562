"""Reward terms that are computed where the policy is (`hookspecs.ResponseScorer`), beside those of the worker pool."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from r1mega import plugins
from r1mega.config import RewardConfig, RewardTerm
from r1mega.errors import ConfigError, PluginError, RewardError, UserError
from r1mega.hookspecs import ResponseScorer
from r1mega.rewards.build import config_of, needs_scorer, opens_reasoning, part_of
from r1mega.rewards.schedule import applicable
from r1mega.types import Prompt, ScoredGroup


class Replica(Protocol):
    """What this module needs of `policy.ranks.Ranks`."""

    def from_lead(self, value: Any) -> Any: ...


def split_terms(reward: RewardConfig) -> tuple[RewardConfig, dict[str, RewardTerm]]:
    """(the same rewards with the worker pool's terms alone, the terms that need a scorer)."""
    registry = plugins.load().registry
    scored = {name: term for name, term in reward.terms.items() if needs_scorer(registry.get("rewards", term.name))}
    return replace(reward, terms={name: term for name, term in reward.terms.items() if name not in scored}), scored


def build_scorers(terms: Mapping[str, RewardTerm], folders: Mapping[str, Path], policy: Any, tokenizer: Any) -> dict[str, ResponseScorer]:
    """The scorer of each of `terms`, on every rank. `folders` holds the reward models connected to the stage, by input name.

    A term reads the input of its own name. Raises `ConfigError` for a connected reward model that no term reads, `PluginError` for a scorer
    that cannot be built.
    """
    if unread := sorted(set(folders) - set(terms)):
        raise ConfigError(f"input '{unread[0]}' is connected but no reward term reads it: add reward.terms.{unread[0]} with a plugin that scores with a "
                          "reward model, or disconnect the input")
    return {name: _build(name, term, folders.get(name), policy, tokenizer) for name, term in terms.items()}


def _build(name: str, term: RewardTerm, folder: Path | None, policy: Any, tokenizer: Any) -> ResponseScorer:
    plugin = plugins.load().registry.get("rewards", term.name)
    config = config_of(name, term, plugin)
    try:
        scorer: ResponseScorer = plugin.factory(*([] if config is None else [config]), folder=folder, policy=policy, tokenizer=tokenizer)
    except UserError:
        raise
    except Exception as error:
        raise PluginError(f"reward '{name}': plugin '{term.name}' of '{plugin.owner}' cannot be built: {type(error).__name__}: {error}") from error
    return scorer


@dataclass(frozen=True)
class ModelTerms:
    """The scorer terms of a stage. Called on every rank alike: each scorer's `score` is a collective."""

    terms: Mapping[str, RewardTerm]
    scorers: Mapping[str, ResponseScorer]
    replica: Replica

    def add(self, groups: Sequence[ScoredGroup], step: int) -> list[ScoredGroup]:
        """This replica's groups, of a rollout that begins at `step`, with the scorer terms that apply to each added to parts and rewards.

        Raises `RewardError` when a scorer breaks its contract.
        """
        found = list(groups)
        for name in self.terms:
            if self._open(name, step):
                self._add_term(name, found, step)
        return found

    def lengths(self, groups: Sequence[ScoredGroup], step: int) -> list[int]:
        """Tokens of each sequence that the scorers' models read for `add`, of this replica; nothing for a scorer without `lengths`."""
        found: list[int] = []
        for name, term in self.terms.items():
            of = getattr(self.scorers[name], "lengths", None)
            if of is not None and self._open(name, step):
                _, prompts, responses = _asked(name, term, groups, step)
                found += of(prompts, responses)
        return found

    def _open(self, name: str, step: int) -> bool:
        """Whether the term counts at `step` for any domain; the same on every replica, whatever prompts it holds."""
        return bool(applicable({name: replace(self.terms[name], domains=[])}, "", step))

    def _add_term(self, name: str, groups: list[ScoredGroup], step: int) -> None:
        term = self.terms[name]
        places, prompts, responses = _asked(name, term, groups, step)
        values = [float(value) for value in self.replica.from_lead(self.scorers[name].score(prompts, responses))]
        if len(values) != len(responses) or not all(map(math.isfinite, values)):
            raise RewardError(f"reward '{name}': its scorer gave {len(values)} values for {len(responses)} responses, or one that is not finite")
        for place in places:
            size = len(groups[place].rewards)
            groups[place] = _with_part(groups[place], name, tuple(values[:size]), term.weight)
            del values[:size]


def _asked(name: str, term: RewardTerm, groups: Sequence[ScoredGroup], step: int) -> tuple[list[int], list[Prompt], list[str]]:
    """The places of the groups that a term applies to; the prompt and the response of each of their samples."""
    places = [place for place, scored in enumerate(groups) if applicable({name: term}, scored.group.prompt.prompt.domain, step)]
    prompts = [groups[place].group.prompt.prompt for place in places for _ in groups[place].rewards]
    return places, prompts, [response for place in places for response in _responses(groups[place], term)]


def _responses(scored: ScoredGroup, term: RewardTerm) -> list[str]:
    opened = opens_reasoning(scored.group.prompt)
    return [part_of(completion.text, term.scope, opened) for completion in scored.group.completions]


def _with_part(scored: ScoredGroup, name: str, values: tuple[float, ...], weight: float) -> ScoredGroup:
    rewards = tuple(reward + weight * value for reward, value in zip(scored.rewards, values, strict=True))
    return replace(scored, rewards=rewards, parts={**scored.parts, name: values})
