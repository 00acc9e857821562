"""Composition: which override reaches which stage, provenance, one-line errors, and every YAML file of conf/."""

from __future__ import annotations

import functools
import operator
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import toy_host, write_conf

from r1mega import plugins
from r1mega.compose import compose_recipe, config_from_tree
from r1mega.compose_hydra import Hydra, conf_folder, session
from r1mega.compose_show import show
from r1mega.errors import ConfigError, PluginError
from r1mega.plugins import Host
from r1mega.recipe.nodes import Recipe, leaves

Run = Callable[..., Recipe]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return toy_host(write_conf(tmp_path / "conf"))


@pytest.fixture
def run(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda *overrides, recipe="toy": compose_recipe([f"recipe={recipe}", *overrides], host)


def test_a_recipe_without_overrides(run: Run, tmp_path: Path) -> None:
    recipe = run()
    assert (recipe.name, recipe.seed, recipe.output_dir) == ("toy", 0, tmp_path / "runs" / "toy")
    assert list(recipe.nodes) == ["base", "zero", "report"]
    base, zero, report = recipe.nodes.values()
    assert (base.config.steps, zero.config.steps) == (3, 7)  # the recipe's stage override beats its root override
    assert base.config.lr == 1e-4
    assert zero.config.rollout.config.max_tokens == 8
    assert dict(zero.inputs) == {"policy": "base.checkpoint"}
    assert report.tree == {"title": "report", "task": {"name": "fixed"}}


def test_root_group_choice_reaches_every_stage_that_has_the_group(run: Run) -> None:
    nodes = run("rollout=toy_slow").nodes
    assert [nodes[name].config.rollout.name for name in ("base", "zero")] == ["slow", "slow"]
    assert "rollout" not in nodes["report"].tree


def test_root_value_reaches_every_stage_that_has_the_key(run: Run) -> None:
    nodes = run("rollout.temperature=0.7").nodes
    assert [nodes[name].config.rollout.config.temperature for name in ("base", "zero")] == [0.7, 0.7]


def test_stage_value_reaches_only_that_stage(run: Run) -> None:
    nodes = run("stages.zero.rollout.temperature=0.7", "rollout.temperature=0.2").nodes
    assert [nodes[name].config.rollout.config.temperature for name in ("base", "zero")] == [0.2, 0.7]


def test_stage_group_choice_reaches_only_that_stage(run: Run) -> None:
    nodes = run("stages.zero.rollout=toy_slow").nodes
    assert [nodes[name].config.rollout.name for name in ("base", "zero")] == ["fast", "slow"]
    assert nodes["zero"].config.rollout.config.servers == 2


def test_strength_of_the_four_kinds(run: Run) -> None:
    assert [node.config.steps for node in list(run("steps=5").nodes.values())[:2]] == [3, 5]
    assert run("steps=5", "stages.base.steps=1").nodes["base"].config.steps == 1


def test_group_choice_comes_before_values_whatever_the_order(run: Run, tmp_path: Path) -> None:
    for overrides in (["task=toy_file", "task.path=data"], ["task.path=data", "task=toy_file"]):
        nodes = run(*overrides).nodes
        assert {node.config.task.config.path for node in nodes.values()} == {str(tmp_path / "data")}


def test_paths_are_absolute_and_urls_are_left(run: Run, tmp_path: Path) -> None:
    assert run("task=toy_file", "task.path=../x/y").nodes["base"].config.task.config.path == str((tmp_path / "../x/y").resolve())
    assert run("task=toy_file", "task.path='s3://b/y'").nodes["base"].config.task.config.path == "s3://b/y"


def test_recipe_value_is_dropped_where_the_users_choice_has_no_such_key(run: Run) -> None:
    config = run("rollout=toy_slow").nodes["base"].config.rollout.config  # the recipe sets rollout.max_tokens
    assert not hasattr(config, "max_tokens")


def test_seed_output_dir_and_inputs(run: Run, tmp_path: Path) -> None:
    recipe = run("seed=7", "output_dir=out", "stages.zero.inputs.policy=null",
                 "stages.report.inputs.policy=base.checkpoint", "stages.base.seed=9")
    assert (recipe.seed, recipe.output_dir) == (7, tmp_path / "out")
    assert [recipe.nodes[name].config.seed for name in ("base", "zero")] == [9, 7]
    assert dict(recipe.nodes["zero"].inputs) == {}
    assert dict(recipe.nodes["report"].inputs) == {"policy": "base.checkpoint"}


def test_mappings_can_be_extended_changed_and_cut(run: Run) -> None:
    reward = run("reward.terms.short.weight=3", "+reward.terms.more={name: length, settings: {target: 2}}", "~reward.terms.plain",
                 "reward.terms.short.settings.target=4").nodes["zero"].config.reward
    assert {name: (term.name, term.weight, term.settings) for name, term in reward.terms.items()} == {
        "short": ("length", 3.0, {"target": 4}), "more": ("length", 1.0, {"target": 2})}


def test_a_recipe_may_speak_to_all_stages_of_a_kind(tmp_path: Path) -> None:
    host = toy_host(write_conf(tmp_path, recipe__toy=(
        "overrides: [steps=2]\nkinds: {toy_train: [steps=5, rollout.temperature=0.5]}\nstages:\n"
        "  a: {stage: toy_train}\n  b: {stage: toy_train, overrides: [steps=6]}\n  c: {stage: toy_report}\n")))
    nodes = compose_recipe(["recipe=toy"], host).nodes
    assert [(nodes[name].config.steps, nodes[name].config.rollout.config.temperature) for name in "ab"] == [(5, 0.5), (6, 0.5)]
    assert "kinds.toy_train" in nodes["a"].provenance["steps"]
    assert compose_recipe(["recipe=toy", "stages.a.steps=9"], host).nodes["a"].config.steps == 9


def test_a_file_may_refer_to_a_key_that_an_override_gives(tmp_path: Path) -> None:
    host = toy_host(write_conf(tmp_path, reward__toy="terms:\n  short: {name: length, settings: {target: '${rollout.max_tokens}'}}\n"))
    assert compose_recipe(["recipe=toy"], host).nodes["zero"].config.reward.terms["short"].settings == {"target": 8}


@pytest.mark.parametrize(("overrides", "words"), [
    (["rollout.temprature=1"], ["override 'rollout.temprature=1'", "no stage", "'rollout.temperature'"]),
    (["rolout=toy_slow"], ["no stage of this recipe has 'rolout'", "'rollout'"]),
    (["rollout=toy_slwo"], ["there is no rollout 'toy_slwo'", "'toy_slow'", "toy_fast"]),
    (["rollout=null"], ["'rollout' is a config group", "toy_fast"]),
    (["steps=many"], ["stages.zero.steps: expected int, got 'many' (str)", "set by override 'steps=many'"]),
    (["stages.zero.rollout.temprature=1"], ["'stages.zero.rollout.temprature=1'", "no such key", "'temperature'"]),
    (["stages.zero.rolout=toy_slow"], ["no such key 'rolout'", "'rollout'"]),
    (["stages.zro.steps=1"], ["no stage 'zro'", "'zero'", "base, zero, report"]),
    (["stages.report.rollout=toy_slow"], ["has no config group 'rollout'", "task"]),
    (["stages.zero.inputs.policy=base"], ["write stages.<name>.inputs.<input>=<stage>.<output>"]),
    (["stages=1"], ["stages.<name>.<key>=<value>"]),
    (["seed=x"], ["seed=<integer"]),
    (["steps"], ["override 'steps': expected key=value"]),
    (["steps=1,2"], ["several values", "steps=[a,b]"]),
    (["task.path={a"], ["malformed"]),
    (["task=toy_file"], ["stages.base.task.path: has no value", "task.path=<str>", "toy_file.yaml, chosen by override 'task=toy_file'"]),
    (["task.name=fil"], ["stages.base.task.name: no tasks plugin is called 'fil'", "'file'"]),
    (["steps=${nope}"], ["Interpolation key 'nope' not found (at steps)"]),
    (["~reward.terms.shrt"], ["no stage of this recipe has 'reward.terms.shrt'", "'reward.terms.short'"]),
    (["recipe=tyo"], ["there is no recipe 'tyo'", "'toy'"]),
])
def test_mistakes_on_the_command_line(run: Run, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        run(*overrides)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(("files", "words"), [
    ({"recipe__toy": "stages: {a: {stage: toy_trian}}"}, ["recipe/toy.yaml: stages.a.stage", "'toy_train'"]),
    ({"recipe__toy": "stagse: {a: {stage: toy_train}}"}, ["recipe/toy.yaml: stagse: no such key", "'stages'"]),
    ({"recipe__toy": "stages: {}"}, ["recipe/toy.yaml: stages: expected at least one"]),
    ({"recipe__toy": "stages: {a: {stage: toy_train, overrides: [{steps: 3}]}}"}, ["stages.a.overrides[0]: expected str, got a mapping"]),
    ({"recipe__toy": "stages: {a: {stage: toy_train, overrides: [stesp=3]}}"}, ["recipe/toy.yaml: stages.a: override 'stesp=3'", "'steps'"]),
    ({"recipe__toy": "kinds: {toy_trian: [steps=3]}\nstages: {a: {stage: toy_train}}"}, ["recipe/toy.yaml: kinds.toy_trian: the recipe has no", "'toy_train'"]),
    ({"recipe__toy": "overrides: [stesp=3]\nstages: {a: {stage: toy_train}}"}, ["recipe/toy.yaml: override 'stesp=3': no stage", "'steps'"]),
    ({"recipe__toy": "overrides: [rollout=slow]\nstages: {a: {stage: toy_train}}"},
     ["recipe/toy.yaml: override 'rollout=slow'", "no rollout 'slow'"]),
    ({"recipe__toy": "stages:\n  a: {stage: toy_train\n"}, ["recipe/toy.yaml:3: malformed YAML"]),
    ({"rollout__toy_fast": "name: fast\nname: slow\n"}, ["rollout/toy_fast.yaml:2: malformed YAML", "duplicate"]),
    ({"rollout__toy_fast": "name: fast\ntemprature: 1\n"},
     ["rollout.temprature: no such key", "'temperature'", "set by", "rollout/toy_fast.yaml"]),
    ({"stage__toy_train": "# @package _global_\ndefaults: [/rollout: gone]\n"}, ["Could not find 'rollout/gone'", "toy_fast"]),
])
def test_mistakes_in_files(tmp_path: Path, files: dict[str, str], words: list[str]) -> None:
    host = toy_host(write_conf(tmp_path, **files))
    with pytest.raises(ConfigError) as caught:
        compose_recipe(["recipe=toy"], host)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_recipe_is_required(host: Host) -> None:
    with pytest.raises(ConfigError, match=r"Give recipe=<name>\. Recipes: .*toy"):
        compose_recipe([], host)


@pytest.mark.parametrize("path", ["conf", "file:///nowhere/at/all", "pkg://no_such_package.conf"])
def test_a_plugins_search_path_must_exist(path: str) -> None:
    with pytest.raises(PluginError, match=r"plugin 'toy': .*config_search_path"):
        compose_recipe(["recipe=toy"], toy_host(path))


@pytest.mark.parametrize(("overrides", "words"), [
    (["parallel.tensor_model_parallel_size=3"],
     ["stages.base: parallel.tensor_model_parallel_size=3 does not divide model.num_attention_heads (4)"]),
    (["parallel=ep2"], ["stages.base: parallel.expert_model_parallel_size=2 needs a model with experts"]),
    (["cluster.ranks_per_node=3"], ["stages.base: the layout needs 1 ranks"]),
    (["precision.params_dtype=fp23"], ["stages.base.precision.params_dtype: expected one of 'fp32', 'bf16'", "Did you mean 'fp32'?"]),
])
def test_impossible_combinations(run: Run, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        run(*overrides, recipe="toy_model")
    for word in words:
        assert word in str(caught.value)


def test_layout_group_choice(run: Run) -> None:
    assert run("parallel=tp2", recipe="toy_model").nodes["base"].config.parallel.tensor_model_parallel_size == 2


def test_provenance_and_cfg(run: Run) -> None:
    recipe = run("stages.zero.rollout.temperature=0.7", "task=toy_file", "task.path=data")
    zero = recipe.nodes["zero"].provenance
    assert set(zero) == {key for key, _ in leaves(recipe.nodes["zero"].tree)}
    assert zero["rollout.temperature"] == "override 'stages.zero.rollout.temperature=0.7'"
    assert zero["task.path"] == "override 'task.path=data'"
    assert zero["task.name"].endswith("task/toy_file.yaml, chosen by override 'task=toy_file'")
    assert zero["lr"].endswith("stage/toy_train.yaml")
    assert zero["steps"].endswith("recipe/toy.yaml: override 'steps=7'")
    assert zero["task.split"] == "default"
    shown = yaml.safe_load(show(recipe))
    assert {name: node["config"] for name, node in shown["stages"].items()} == {name: node.tree for name, node in recipe.nodes.items()}
    for line in show(recipe).splitlines():
        if "temperature" in line:
            assert "# " in line


def test_the_written_tree_builds_the_same_config(run: Run, host: Host) -> None:
    for node in run().nodes.values():
        assert config_from_tree(host, node.stage, yaml.safe_load(yaml.safe_dump(dict(node.tree)))) == node.config


def test_hydra_is_left_as_it_was(run: Run) -> None:
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    run()
    assert GlobalHydra.instance().hydra is before


def test_composing_needs_no_torch(tmp_path: Path) -> None:
    script = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
              "from pathlib import Path\nfrom toy import toy_host, write_conf\nfrom r1mega.compose import compose_recipe\n"
              f"compose_recipe(['recipe=toy_model', 'parallel=tp2'], toy_host(write_conf(Path({str(tmp_path)!r}))))\n"
              "heavy = [name for name in ('torch', 'megatron', 'transformers') if name in sys.modules]\n"
              "assert not heavy, heavy")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------------------------- every YAML file of conf/

FILES = sorted(str(path.relative_to(conf_folder()).with_suffix("")) for path in conf_folder().rglob("*.yaml"))
# what a `???` stands for
EXAMPLES = {"task.path": "data", "task.dataset": "some/dataset", "tokenizer.path": "tokenizer.json", "model.path": "model",
            "rollout.model": "teacher", "rewriter.model": "teacher", "annotator.model": "judge", "reward.terms.accuracy.settings.model": "judge"}


@pytest.fixture(scope="module")
def built_in() -> Iterator[Hydra]:
    with session(plugins.load()) as hydra:
        yield hydra


def fill(tree: dict[str, Any]) -> None:
    """Give every value that has none an example."""
    for key, value in leaves(tree):
        if value == "???":
            *outer, last = key.split(".")
            functools.reduce(operator.getitem, outer, tree)[last] = EXAMPLES[key]


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("recipe/")])
def test_every_choice_composes_in_a_stage_that_has_its_group(file: str, built_in: Hydra) -> None:
    group, _, choice = file.rpartition("/")
    stages = built_in.options("stage")
    if not stages:
        pytest.skip("conf/stage is empty: nothing to compose this file in")
    if group == "stage":
        stage, tree = choice, built_in.compose(file)
    else:
        having = [stage for stage in stages if group in built_in.choices(f"stage/{stage}")]
        assert having, f"conf/{file}.yaml: no stage has the group '{group}'"
        stage, tree = having[0], built_in.compose(f"stage/{having[0]}", [f"{group}={choice}"])
    fill(tree)
    config_from_tree(plugins.load(), stage, tree)


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("recipe/")])
def test_every_recipe_composes(file: str) -> None:
    host = plugins.load()
    name = file.removeprefix("recipe/")
    try:
        recipe = compose_recipe([f"recipe={name}"], host)
    except ConfigError as error:  # a recipe may leave a data path to its user
        missing = re.search(r"stages\.\w+\.([\w.]+): has no value", str(error))
        if not missing:
            raise
        recipe = compose_recipe([f"recipe={name}", f"{missing[1]}={EXAMPLES[missing[1]]}"], host)
    assert recipe.nodes


def test_the_zero_template_ends_where_the_assistant_begins() -> None:
    prompt = yaml.safe_load((conf_folder() / "template/zero.yaml").read_text())["prompt"]
    assert prompt.endswith("User: {question}\nAssistant:")
    assert all(tag in prompt for tag in ("<think>", "</think>", "<answer>", "</answer>"))
