"""The evaluation sets of stages that make data from a task: which are compared, and what general data and sampled prompts lose to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from r1mega_plugins.stages._evaluations import compared, evaluations_of
from r1mega_plugins.stages.general_data import GeneralData, GeneralDataConfig
from r1mega_plugins.stages.sample import Sample, SampleConfig
from r1mega_plugins.tasks.arithmetic import Arithmetic, ArithmeticConfig
from r1mega_plugins.tasks.tiny_world import TinyWorld, TinyWorldConfig

from r1mega.config import PluginChoice
from r1mega.data.decontaminate import DecontaminationConfig, EvaluationTask, TaskDecontaminationConfig
from r1mega.data.records import read_preferences, read_prompts, read_samples, write_prompts
from r1mega.errors import ConfigError
from r1mega.recipe.context import StageContext
from r1mega.types import Prompt

SUMS: Any = PluginChoice("arithmetic", ArithmeticConfig(max_operand=12))
WORLD: Any = PluginChoice("tiny_world", TinyWorldConfig())


def context(folder: Path, **inputs: Path) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "epoch").write_text("1")
    return StageContext("data", None, folder, folder, inputs, 0, 1, 0, 1)


def test_the_own_task_is_one_of_the_recipes_or_the_test_split(tmp_path: Path) -> None:
    own = Arithmetic(SUMS.config)
    listed = SampleConfig(task=SUMS, evaluation_tasks={"sums": EvaluationTask(SUMS)})
    off = TaskDecontaminationConfig(test_split=False)
    problems = len(own.prompts("test"))
    here = context(tmp_path)
    assert evaluations_of(listed, here, own).sets == {"sums": problems}, "the same problems once"
    assert evaluations_of(SampleConfig(task=SUMS), here, own).sets == {"test_split": problems}
    assert evaluations_of(dataclasses.replace(listed, decontamination=off), here, own).sets == {}
    other = dataclasses.replace(listed, task=WORLD, decontamination=off)
    assert evaluations_of(other, here, TinyWorld(WORLD.config)).sets == {"sums": problems}
    assert compared(listed, evaluations_of(listed, here, own)) == {"decontaminated against": f"sums ({problems} problems)"}
    alone = SampleConfig(task=SUMS, decontamination=TaskDecontaminationConfig(recipe=False, test_split=False))
    assert compared(alone, evaluations_of(alone, here, own)) == {
        "decontaminated against": "none", "the recipe's evaluations": "not compared (decontamination.recipe is off)"}


def test_a_problem_in_an_earlier_turn_costs_a_sampled_prompt(tmp_path: Path) -> None:
    own = Arithmetic(SUMS.config)
    held_out = own.prompts("test")[0].question
    earlier = {"messages": [{"role": "user", "content": held_out}, {"role": "assistant", "content": "8"}]}
    stage = Sample(SampleConfig(task=SUMS))
    prompts = [Prompt("now", held_out), Prompt("earlier", "Are you sure?", metadata=earlier), Prompt("clean", "Are you sure?")]
    assert [prompt.id for prompt in stage._clean(prompts, evaluations_of(stage.config, context(tmp_path), own))] == ["clean"]
    assert stage._prompt_drops["math"].drops == {"prompt_contaminated": 2}
    assert list(stage._contaminated.values()) == [2]


def test_general_data_lose_what_is_measured_on_and_nothing_else(tmp_path: Path) -> None:
    """The world's own held-out requests share no text with its training side; planted training requests are found in all four tables."""
    config = GeneralDataConfig(samples=80, preferences=80, task=WORLD)
    world = TinyWorld(WORLD.config)
    write_prompts(tmp_path / "held_out", world.general_prompts("test"))
    before, here = GeneralData(config).run(context(tmp_path / "before")), context(tmp_path / "same", evaluation=tmp_path / "held_out")
    after = GeneralData(config).run(here)
    assert {name: after[name] for name in before} == before
    assert {name: count for name, count in after.items() if "contaminated" in name} == {
        f"{name}_contaminated": 0 for name in ("samples", "prompts", "refusals", "pairs", "judged")}
    planted = {domain: {row.prompt for row in rows} for domain, rows in (("helpful", read_preferences(here.output("preferences"))[0][:3]),
                                                                         ("safety", read_preferences(here.output("preferences"))[1][:3]))}
    asked = sorted(planted["helpful"] | planted["safety"] | {read_samples(here.output("samples"))[0].prompt})
    write_prompts(tmp_path / "planted", [Prompt(str(number), question) for number, question in enumerate(asked)])
    there = context(tmp_path / "after", evaluation=tmp_path / "planted")
    metrics = GeneralData(config).run(there)
    assert metrics["prompts_contaminated"] == metrics["prompts_contaminated/evaluation"] == len(asked)
    for name in ("samples", "pairs", "judged"):
        assert metrics[f"{name}_contaminated"] > 0
        assert metrics[name] + metrics[f"{name}_contaminated"] == before[name]
    rows = [*read_samples(there.output("samples")), *read_preferences(there.output("preferences"))[0], *read_preferences(there.output("preferences"))[1]]
    assert not {row.prompt for row in rows} & set(asked)
    assert not {prompt.question for prompt in read_prompts(there.output("prompts"))} & set(asked)
    assert f"- decontaminated against: evaluation ({len(asked)} problems)" in (there.output("samples") / "README.md").read_text()


@pytest.mark.parametrize("settings", [{"common_share": 0.0}, {"common_share": 1.5}, {"ngram": 0}])
def test_impossible_settings_are_named_when_they_are_composed(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"decontamination: .*{next(iter(settings))}"):
        DecontaminationConfig(**settings)
