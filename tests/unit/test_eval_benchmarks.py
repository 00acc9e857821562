"""The benchmark group: every choice composes on the evaluate stage with the paper's sampling, and wins over a recipe's own task and reward."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from r1mega import plugins
from r1mega.compose import compose_recipe, config_from_tree
from r1mega.compose_hydra import Hydra, conf_folder, session
from r1mega.errors import ConfigError
from r1mega.plugins import Host

SAMPLES = {"aime_2024": 64, "gpqa_diamond": 64, "math_500": 16, "livecodebench": 8}  # R1_RECIPE section 6
BENCHMARKS = sorted(path.stem for path in (conf_folder() / "benchmark").glob("*.yaml"))


@pytest.fixture(scope="module")
def host() -> Host:
    return plugins.load()


@pytest.fixture(scope="module")
def hydra(host: Host) -> Iterator[Hydra]:
    with session(host) as hydra:
        yield hydra


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_brings_its_task_its_reward_and_the_papers_sampling(name: str, host: Host, hydra: Hydra) -> None:
    assert hydra.overridden("benchmark", name) == {"task", "reward"}
    config = config_from_tree(host, "evaluate", hydra.compose("stage/evaluate", [f"benchmark={name}"]))
    assert config.evaluation.metric in config.reward.terms
    assert {"format", "language_consistency"} <= set(config.reward.terms)
    assert (config.evaluation.samples, config.evaluation.temperature, config.evaluation.top_p) == (SAMPLES.get(name, 4), 0.6, 0.95)
    with pytest.raises(ConfigError, match=r"task\.path is empty"):  # the path is the user's
        host.registry.get("tasks", config.task.name).factory(config.task.config)


def test_a_benchmark_wins_over_the_recipes_task_and_a_stronger_choice_over_the_benchmark(host: Host) -> None:
    config = compose_recipe(["recipe=r1_zero_tiny", "stages.score.benchmark=mmlu", "stages.score.reward=zero"], host).nodes["score"].config
    assert config.task.name == "choice", "the recipe's own task=arithmetic is the weaker choice"
    assert config.reward.terms["accuracy"].name == "accuracy"
    with pytest.raises(ConfigError, match=r"there is no benchmark 'math_50'\. Did you mean 'math_500'"):
        compose_recipe(["recipe=r1_zero_tiny", "stages.score.benchmark=math_50"], host)
