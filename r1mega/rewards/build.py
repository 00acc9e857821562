"""From a reward term of the config to a reward object, and one checked call of it. Runs wherever rewards run."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Sequence
from typing import Any

from r1mega import plugins
from r1mega.config import RewardTerm
from r1mega.errors import ConfigError, PluginError, UserError, nearest
from r1mega.hookspecs import Reward
from r1mega.registry import Plugin
from r1mega.types import RewardSample, Score


def build_reward(key: str, term: RewardTerm) -> Reward:
    """The reward of term `key`. Raises `PluginError` or `ConfigError` that names the term, the plugin and its owner."""
    plugin = plugins.load().registry.get("rewards", term.name)
    who = f"reward '{key}': plugin '{term.name}' of '{plugin.owner}'"
    try:
        reward: Reward = plugin.factory(_config(key, term, plugin)) if plugin.config else _without_config(key, term, plugin)
    except UserError:
        raise
    except Exception as error:
        raise PluginError(f"{who} cannot be built: {type(error).__name__}: {error}") from error
    if not callable(getattr(reward, "score", None)):
        raise PluginError(f"{who} made a {type(reward).__name__} without a method 'score(samples)'")
    return reward


def _without_config(key: str, term: RewardTerm, plugin: Plugin) -> Any:
    if term.settings:
        raise ConfigError(f"reward.terms.{key}.settings: plugin '{term.name}' takes no settings, got {', '.join(map(str, term.settings))}")
    return plugin.factory()


def _config(key: str, term: RewardTerm, plugin: Plugin) -> Any:
    assert plugin.config is not None
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
