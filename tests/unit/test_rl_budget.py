"""How much compute an RL run may spend: a number, what another stage has spent, or both."""

from __future__ import annotations

from pathlib import Path

import pytest
from r1mega_plugins.stages.rl import compute_limit

from r1mega.errors import ConfigError
from r1mega.recipe.artifacts import Manifest


def made(folder: Path, **metrics: float) -> Path:
    """An artifact's folder in a stage with these closing metrics."""
    artifact = folder / "artifacts" / "checkpoint"
    artifact.mkdir(parents=True)
    Manifest("distill", "sft", "r1mega", "f", {}, "c", {}, 1, metrics=metrics).save(folder)
    return artifact


def test_the_smaller_of_both_limits_counts(tmp_path: Path) -> None:
    budget = made(tmp_path, model_flops=2e12, loss=0.1)
    assert compute_limit(None, None) is None
    assert compute_limit(3e12, None) == 3e12
    assert compute_limit(None, budget) == 2e12
    assert compute_limit(3e12, budget) == 2e12
    assert compute_limit(1e12, budget) == 1e12


def test_a_stage_that_counts_nothing_is_no_budget(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"input 'budget': the stage that made .* has counted no FLOPs"):
        compute_limit(None, made(tmp_path, loss=0.1))
