"""The algorithm plugins: what they register, that their YAML says what the dataclasses default to, and DAPO's own parts."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from r1mega_plugins.algorithms import dapo, dr_grpo, grpo, gspo
from r1mega_plugins.algorithms.dapo import DAPO, DAPOConfig
from r1mega_plugins.algorithms.grpo import GRPO, GRPOConfig

from r1mega.errors import ConfigError
from r1mega.types import Completion, EncodedPrompt, Prompt, RolloutGroup, ScoredGroup

CONF = Path(__file__).parents[2] / "conf" / "algorithm"
NAMES = ("grpo", "dr_grpo", "dapo", "gspo")


def registered() -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}

    def register(name: str, factory: Any, *, config: type | None = None) -> None:
        found[name] = (factory, config)

    for module in (grpo, dr_grpo, dapo, gspo):
        module.register_algorithms(register)
    return found


def scored(rewards: list[float], lengths: list[int], truncated: list[bool] | None = None, **parts: list[float]) -> ScoredGroup:
    truncated = truncated or [False] * len(rewards)
    completions = tuple(Completion(f"p#{i}", (1,) * length, (0.0,) * length, "x", "length" if cut else "stop", 0)
                        for i, (length, cut) in enumerate(zip(lengths, truncated, strict=True)))
    return ScoredGroup(RolloutGroup(EncodedPrompt(Prompt("p", "?"), "?", (1,)), completions), tuple(rewards),
                       {name: tuple(values) for name, values in parts.items()}, (True,) * len(rewards))


def test_the_registry_has_the_four() -> None:
    assert tuple(registered()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_yaml_and_dataclass_defaults_agree(name: str) -> None:
    """So that a value cannot be changed in one place alone; `max_tokens` follows the rollout."""
    tree = OmegaConf.create({"algorithm": OmegaConf.load(CONF / f"{name}.yaml"), "rollout": {"max_tokens": 20480}})
    values = OmegaConf.to_container(tree, resolve=True)["algorithm"]  # type: ignore[call-overload, index]
    assert values.pop("name") == name
    factory, config = registered()[name]
    assert config(**values) == config(max_tokens=20480)
    assert factory(config(**values)).needs_reference == (name == "grpo")


def test_clip02_is_grpo_with_ppos_clip_range() -> None:
    with initialize_config_dir(str(CONF.parent), version_base="1.3"):
        values = OmegaConf.to_container(compose(overrides=["+algorithm=grpo_clip02", "+rollout.max_tokens=512"]).algorithm, resolve=True)
    assert isinstance(values, dict)
    assert values.pop("name") == "grpo"
    assert GRPOConfig(**values) == GRPOConfig(clip_ratio_low=0.2, clip_ratio_high=0.2, max_tokens=512)  # type: ignore[misc]


def test_importing_the_plugins_does_not_import_torch() -> None:
    modules = ", ".join([*(f"r1mega_plugins.algorithms.{name}" for name in NAMES), "r1mega.rollout.mismatch"])
    assert subprocess.run([sys.executable, "-c", f"import sys, {modules}; sys.exit('torch' in sys.modules)"], check=False).returncode == 0


@pytest.mark.parametrize(("config", "settings", "key"), [
    (GRPOConfig, {"clip_ratio_low": -0.1}, "clip_ratio_low"),
    (GRPOConfig, {"kl_coefficient": float("nan")}, "kl_coefficient"),
    (GRPOConfig, {"dual_clip": 0.9}, "dual_clip"),
    (GRPOConfig, {"aggregation": "dr_grpo"}, "max_tokens"),
    (DAPOConfig, {}, "max_tokens"),
    (DAPOConfig, {"max_tokens": 100, "overlong_buffer": 101}, "overlong_buffer"),
    (DAPOConfig, {"max_tokens": 100, "overlong_buffer": 0}, "overlong_buffer"),
    (DAPOConfig, {"max_tokens": 100, "overlong_buffer": 10, "overlong_penalty": -1.0}, "overlong_penalty"),
])
def test_impossible_settings_are_named(config: Any, settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}="):
        config(**settings)


def test_zero_kl_needs_no_reference() -> None:
    assert GRPO(GRPOConfig()).needs_reference
    assert not GRPO(GRPOConfig(kl_coefficient=0.0)).needs_reference


def test_dapo_punishes_long_answers_in_proportion() -> None:
    """Equal rewards; the lengths alone rank them: 0, -0.5, -1 before normalisation."""
    group = scored([1.0, 1.0, 1.0], [80, 90, 100], [False, False, True])
    algorithm = DAPO(DAPOConfig(max_tokens=100, overlong_buffer=20, normalize_std=False))
    np.testing.assert_allclose(algorithm.advantages([group])[0], [0.5, 0.0, -0.5], atol=1e-7)
    assert np.isnan(DAPO(DAPOConfig(overlong_penalty=0.0)).advantages([group])[0]).all()


def test_dapo_overlong_filtering_masks_truncated_samples_only() -> None:
    """The truncated sample gives no gradient, but its reward stays in the group's mean and standard deviation."""
    group = scored([1.0, 0.0, 0.0], [5, 5, 100], [False, False, True])
    plain, filtered = (DAPO(DAPOConfig(overlong_penalty=0.0, overlong_filtering=on)).advantages([group])[0] for on in (False, True))
    np.testing.assert_array_equal(filtered[:2], plain[:2])
    assert np.isnan(filtered[2])
    assert not np.isnan(plain[2])


def test_dynamic_sampling_looks_at_rewards_before_the_length_punishment() -> None:
    algorithm = DAPO(DAPOConfig(max_tokens=100, overlong_buffer=20))
    assert algorithm.dynamic_sampling
    assert not algorithm.keep_group(scored([1.0, 1.0], [5, 100]))
    assert algorithm.keep_group(scored([1.0, -1.0], [5, 100]))


def test_dynamic_sampling_on_one_reward_term() -> None:
    """All answers right, one badly formatted: the sum varies, correctness does not."""
    algorithm = DAPO(DAPOConfig(overlong_penalty=0.0, dynamic_sampling_part="accuracy"))
    assert not algorithm.keep_group(scored([2.0, 1.0], [5, 5], accuracy=[1.0, 1.0], format=[1.0, 0.0]))
    assert algorithm.keep_group(scored([1.0, 1.0], [5, 5], accuracy=[1.0, 0.0], format=[0.0, 1.0]))
    misspelt = DAPO(DAPOConfig(overlong_penalty=0.0, dynamic_sampling_part="acuracy"))
    with pytest.raises(ConfigError, match=r"dynamic_sampling_part=acuracy.*Did you mean 'accuracy'"):
        misspelt.keep_group(scored([1.0, 0.0], [5, 5], accuracy=[1.0, 0.0]))


def test_version_is_on_every_algorithm() -> None:
    assert {factory.version for factory, _ in registered().values()} == {"1"}
    assert all(dataclasses.is_dataclass(config) for _, config in registered().values())
