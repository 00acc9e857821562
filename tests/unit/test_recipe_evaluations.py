"""What a recipe measures on reaches every stage that makes training data: as settings with their provenance, as inputs, as a reason to be stale."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml

from r1mega import hookimpl, plugins
from r1mega.compose import compose_recipe
from r1mega.compose_show import show
from r1mega.data.decontaminate import unset_tasks
from r1mega.errors import ConfigError
from r1mega.plugins import Host
from r1mega.recipe import artifacts, files, graph, required, status
from r1mega.recipe.artifacts import Manifest, RunFolder
from r1mega.recipe.assess import assess
from r1mega.recipe.nodes import Recipe

HEAD = "overrides: [model=tiny_dense, tokenizer=sentencepiece, template=zero_tiny, precision=fp32, task=arithmetic]\nstages:\n  base: {stage: pretrain}\n"
LEARN = """
  given: {stage: import_data}
  zero: {stage: rl, inputs: {policy: base.checkpoint, prompts: given.prompts}}
  data: {stage: sample, inputs: {policy: zero.checkpoint, prompts: given.prompts}}
  sft: {stage: sft, inputs: {policy: base.checkpoint, samples: data.samples, extra: given.samples}}
"""
SCORES = """
  score: {stage: evaluate, inputs: {policy: sft.checkpoint}}
  aime: {stage: evaluate, inputs: {policy: sft.checkpoint}, overrides: [benchmark=aime_2024]}
  aime_again: {stage: evaluate, inputs: {policy: zero.checkpoint}, overrides: [benchmark=aime_2024]}
"""
WORLD = """
  world: {stage: general_data, overrides: [task=tiny_world]}
  asked: {stage: general_data, overrides: [task=tiny_world, split=test]}
  reward: {stage: reward_model, inputs: {policy: base.checkpoint, preferences: world.preferences}}
  polite: {stage: evaluate, inputs: {policy: base.checkpoint, prompts: asked.prompts}}
"""
MAKERS = ("given", "zero", "data")


class Recipes:
    """An outside plugin that brings recipes."""

    def __init__(self, conf: Path) -> None:
        self.conf = conf

    @hookimpl
    def config_search_path(self) -> str:
        return f"file://{self.conf}"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    conf = tmp_path_factory.mktemp("conf")
    (conf / "recipe").mkdir()
    recipes = {"two": LEARN + SCORES, "asked": LEARN + WORLD, "both": WORLD.replace("inputs: {policy: base.checkpoint, prompts: asked.prompts}",
                                                                                 "inputs: {policy: base.checkpoint, prompts: world.prompts}")}
    for name, stages in recipes.items():
        (conf / "recipe" / f"{name}.yaml").write_text(HEAD + stages)
    made = Host()
    for name in plugins._built_in_modules():
        made.add(importlib.import_module(name), name)
    made.add(Recipes(conf), "recipes")
    made.finish()
    return made


@pytest.fixture(scope="module")
def two(host: Host) -> Recipe:
    return compose_recipe(["recipe=two"], host)


def test_every_maker_of_training_data_is_told_of_every_evaluation(two: Recipe, host: Host) -> None:
    for name in MAKERS:
        tasks = two.nodes[name].config.evaluation_tasks
        assert list(tasks) == ["arithmetic", "aime_2024"], name
        assert tasks["arithmetic"].task == two.nodes["zero"].config.task
        assert two.nodes[name].tree["evaluation_tasks"]["aime_2024"]["task"]["answers"] == "integer"
    assert not hasattr(two.nodes["sft"].config, "evaluation_tasks"), "who only reads data has nothing to keep clean"
    built = graph.build(two, host).nodes["given"]
    assert set(built.plugins) >= {"tasks/math_benchmark", "tasks/arithmetic"}, "another version of an evaluation task may have other problems"


def test_cfg_shows_the_list_and_where_it_came_from(two: Recipe) -> None:
    node = two.nodes["data"]
    assert node.provenance["evaluation_tasks.arithmetic.task.max_operand"] == "measured on by stages.zero, stages.score"
    assert node.provenance["evaluation_tasks.aime_2024.task.name"] == "measured on by stages.aime, stages.aime_again"
    text = show(two)
    assert yaml.safe_load(text)["stages"]["given"]["config"]["evaluation_tasks"]["aime_2024"]["seed"] == 0
    assert "name: math_benchmark  # measured on by stages.aime, stages.aime_again" in text


def test_status_names_the_evaluation_that_made_data_stale(two: Recipe, host: Host, tmp_path: Path) -> None:
    folder, built = RunFolder(tmp_path), graph.build(two, host)
    verdict = assess(built, folder)["given"]
    assert verdict.fingerprint
    assert verdict.basis
    stage_dir = folder.stage("given", verdict.fingerprint)
    for output in verdict.node.output_types:
        artifacts.artifact(stage_dir, output).mkdir(parents=True)
        (artifacts.artifact(stage_dir, output) / "rows.jsonl").write_text("{}\n")
    Manifest("given", "import_data", "r1mega", verdict.fingerprint, verdict.basis, "", {}, 1, state="done",
             artifacts=artifacts.record(verdict.node, stage_dir)).save(stage_dir)
    files.point(folder.stage("given"), verdict.fingerprint)
    changed = compose_recipe(["recipe=two", "stages.zero.task.max_operand=30", "stages.score.task.max_operand=30"], host)
    for recipe, state in (two, "done"), (changed, "stale"):
        folder.config.write_text(yaml.safe_dump({"stages": {name: dict(node.tree) for name, node in recipe.nodes.items()}}))
        files.write_json(folder.graph, graph.build(recipe, host).to_json())
        found = status.inspect(tmp_path)[0]["given"]
        assert found.state == state
    assert found.reasons == ("evaluation_tasks.arithmetic.task.max_operand: 40 -> 30",)


def test_a_task_without_its_path_is_asked_for_where_it_is_measured_alone(two: Recipe, host: Host) -> None:
    built = graph.build(two, host)
    assert unset_tasks(two.nodes["data"].config.evaluation_tasks) == {"aime_2024": "task.path"}
    assert required.unset_paths(built, host, {"base", "zero", "data"}) == {}
    assert required.unset_paths(built, host, {"aime"}) == {"aime": ["task.path"]}


def test_evaluation_prompts_of_another_stage_become_an_input(host: Host) -> None:
    recipe = compose_recipe(["recipe=asked"], host)
    for name in (*MAKERS, "world"):
        assert recipe.nodes[name].inputs["evaluation"] == "asked.prompts"
        assert recipe.nodes[name].provenance["inputs.evaluation"] == "measured on by stages.polite"
    assert "# evaluation: measured on by stages.polite" in show(recipe)
    assert not recipe.nodes["asked"].inputs, "what is only measured on is not compared with itself"
    assert recipe.nodes["asked"].config.evaluation_tasks == {}
    order = list(graph.build(recipe, host).nodes)
    assert order.index("asked") < min(order.index(name) for name in (*MAKERS, "world"))


def test_a_users_own_evaluations_stay_beside_those_of_the_recipe(host: Host) -> None:
    own = ["+stages.given.evaluation_tasks.arithmetic={task: {name: arithmetic, max_operand: 7}}", "stages.data.inputs.evaluation=asked.prompts",
           "stages.zero.decontamination.recipe=false"]
    recipe = compose_recipe(["recipe=asked", *own], host)
    tasks = recipe.nodes["given"].config.evaluation_tasks
    assert [tasks[name].task.config.max_operand for name in ("arithmetic", "arithmetic_2")] == [7, 40]
    assert [name for name in recipe.nodes["data"].inputs if name.startswith("evaluation")] == ["evaluation"]
    assert recipe.nodes["zero"].config.evaluation_tasks == {}
    assert "evaluation" not in recipe.nodes["zero"].inputs


def test_rows_that_are_learned_from_and_measured_on_are_refused(host: Host) -> None:
    with pytest.raises(ConfigError, match=r"stages\.world: stages\.polite measures on world\.prompts, .*stages\.world\.decontamination\.recipe=false"):
        compose_recipe(["recipe=both"], host)
