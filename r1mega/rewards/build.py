"""From a reward term of the config to a reward object, and one checked call of it. Runs wherever rewards run."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Sequence
from typing import Any

from r1mega import plugins
from r1mega.config import RewardTerm
from r1mega.data.chat import split_response
from r1mega.errors import ConfigError, PluginError, UserError, nearest
from r1mega.hookspecs import Reward
from r1mega.registry import Plugin
from r1mega.types import EncodedPrompt, RewardSample, Score


def build_reward(key: str, term: RewardTerm) -> Reward:
    """The reward of term `key`. Raises `PluginError` or `ConfigError` that names the term, the plugin and its owner."""
    plugin = plugins.load().registry.get("rewards", term.name)
    who = f"reward '{key}': plugin '{term.name}' of '{plugin.owner}'"
    if needs_scorer(plugin):
        raise PluginError(f"{who} scores with the policy at hand, which only the stage 'rl' has; leave it out of this stage's reward.terms")
    try:
        config = config_of(key, term, plugin)
        reward: Reward = plugin.factory() if config is None else plugin.factory(config)
    except UserError:
        raise
    except Exception as error:
        raise PluginError(f"{who} cannot be built: {type(error).__name__}: {error}") from error
    if not callable(getattr(reward, "score", None)):
        raise PluginError(f"{who} made a {type(reward).__name__} without a method 'score(samples)'")
    return reward


def needs_scorer(plugin: Plugin) -> bool:
    """Whether the plugin makes a `hookspecs.ResponseScorer`, which workers cannot run."""
    return bool(getattr(plugin.factory, "needs_scorer", False))


def config_of(key: str, term: RewardTerm, plugin: Plugin) -> Any:
    """The plugin's config instance from the term's settings; None for a plugin that takes none. Raises `ConfigError`."""
    if plugin.config is None:
        if term.settings:
            raise ConfigError(f"reward.terms.{key}.settings: plugin '{term.name}' takes no settings, got {', '.join(map(str, term.settings))}")
        return None
    known = [field.name for field in dataclasses.fields(plugin.config) if field.init]
    for name in term.settings:
        if name not in known:
            raise ConfigError(f"reward.terms.{key}.settings.{name}: plugin '{term.name}' has no such setting.{nearest(str(name), known)} "
                              f"Known: {', '.join(known) or 'none'}")
    try:
        return plugin.config(**term.settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"reward.terms.{key}.settings: {error}") from error


def checked_scores(reward: Reward, samples: Sequence[RewardSample]) -> list[Score]:
    """`reward.score(samples)`, held to its contract. Raises `TypeError` or `ValueError` that says how it was broken."""
    scores = reward.score(samples)
    if not isinstance(scores, Sequence) or isinstance(scores, str):
        raise TypeError(f"score() must return a list of Score, got {type(scores).__name__}")
    if len(scores) != len(samples):
        raise ValueError(f"score() returned {len(scores)} scores for {len(samples)} samples")
    for score in scores:
        if not isinstance(score, Score):
            raise TypeError(f"score() must return a list of Score, got a {type(score).__name__} in it")
        if not math.isfinite(score.value):
            raise ValueError(f"score() returned the value {score.value}")
    return list(scores)


def load_samples(pickled: Sequence[bytes]) -> list[RewardSample]:
    """Samples as `RewardPool.submit` sends them, one pickle each."""
    return [pickle.loads(blob) for blob in pickled]


def seen(sample: RewardSample, term: RewardTerm) -> RewardSample:
    """The sample as the term sees it: its completion cut to the term's `scope` (R1_RECIPE 2.5: the helpful reward sees the summary alone)."""
    if term.scope == "response":
        return sample
    return dataclasses.replace(sample, completion=part_of(sample.completion, term.scope, sample.starts_in_reasoning))


def opens_reasoning(prompt: EncodedPrompt) -> bool:
    """Whether the template has already opened the reasoning block, so that a completion starts inside it."""
    return prompt.text.rstrip().endswith("<think>")


def part_of(completion: str, scope: str, starts_in_reasoning: bool) -> str:
    """The reasoning, the summary after it, or (`response`) all of a completion."""
    if scope == "response":
        return completion
    reasoning, summary = split_response(completion, starts_in_reasoning=starts_in_reasoning)
    return summary if scope == "summary" else reasoning
