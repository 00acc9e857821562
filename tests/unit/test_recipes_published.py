"""The recipes of paper size against what the papers publish (arXiv 2501.12948 v2 unless marked), key by key, and whether they hold together."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from r1mega import plugins
from r1mega.compose import compose_recipe
from r1mega.compose_hydra import conf_folder
from r1mega.data.chat import check_template
from r1mega.policy.layout import check_layout, pipeline_layout
from r1mega.recipe import graph
from r1mega.recipe.nodes import Recipe
from r1mega.recipe.runner import world_size

STUDENTS = {  # Table 6: student -> (base, learning rate)
    "qwen_1_5b": ("Qwen2.5-Math-1.5B", 1e-4), "qwen_7b": ("Qwen2.5-Math-7B", 8e-5), "qwen_14b": ("Qwen2.5-14B", 7e-5),
    "qwen_32b": ("Qwen2.5-32B", 6e-5), "llama_8b": ("Llama-3.1-8B", 5e-5), "llama_70b": ("Llama-3.3-70B-Instruct", 2e-5)}
PAPER_SIZE = ("r1_zero", "r1", *(f"distill_{name}" for name in STUDENTS))
RECIPES = (*PAPER_SIZE, "r1_h200_small")

Published = tuple[str, str, str, Any, str]  # recipe, node, key, value, source

GRPO = [("optimizer.lr", 3e-6), ("algorithm.kl_coefficient", 0.001), ("group_size", 16), ("prompts_per_rollout", 512), ("updates_per_rollout", 16),
        ("reference_every", 400), ("rollout.max_tokens", 32768), ("algorithm.name", "grpo"), ("algorithm.kl_estimator", "k3"),
        ("algorithm.normalize_std", True)]
ZERO: list[Published] = [(recipe, "zero", key, value, "2.1") for recipe in ("r1_zero", "r1") for key, value in [
    *GRPO, ("rollout.temperature", 1.0), ("steps", 10400), ("max_tokens_schedule", [{"from_step": 8200, "max_tokens": 65536}])]]
ZERO += [(recipe, "zero", f"reward.terms.{term}.weight", 1.0, "2.2 Eq 4") for recipe in ("r1_zero", "r1") for term in ("accuracy", "format")]
R1_RL: list[Published] = [("r1", node, key, value, "3.2.1") for node in ("reasoning_rl", "all_scenario_rl") for key, value in [
    *GRPO, ("algorithm.clip_ratio_low", 10.0), ("algorithm.clip_ratio_high", 10.0), ("reward.terms.language_consistency.weight", 1.0),
    ("reward.terms.language_consistency.domains", []), ("reward.terms.language_consistency.until_step", None)]]
R1_RL += [("r1", "reasoning_rl", "rollout.temperature", 1.0, "3.2.1"), ("r1", "all_scenario_rl", "rollout.temperature", 0.7, "3.2.2"),
          ("r1", "all_scenario_rl", "steps", 1700, "3.2.2"), ("r1", "all_scenario_rl", "reward.terms.helpful.scope", "summary", "3.1"),
          ("r1", "all_scenario_rl", "reward.terms.safety.scope", "response", "3.1")]
R1_RL += [("r1", "all_scenario_rl", f"{key}.{kind}.from_step", 1300, "3.2.2") for key in ("prompt_schedule", "reward.terms") for kind in ("helpful", "safety")]
R1_RL += [("r1", "all_scenario_rl", f"reward.terms.{kind}.domains", [kind], "3.2.2") for kind in ("helpful", "safety")]
R1_SFT: list[Published] = [("r1", node, key, value, "B.4.2") for node in ("cold_start", "sft") for key, value in [
    ("optimizer.lr", 5e-5), ("optimizer.min_lr", 5e-6), ("optimizer.lr_decay_style", "cosine"), ("max_length", 32768), ("batch_size", 128), ("epochs", 2)]]
R1_SFT += [("r1", "cold_start_data", "rollout.temperature", 1.0, "B.3.2"), ("r1", "sft_data", "decontamination.ngram", 10, "D.1"),
           ("r1", "sft_data", "filters.code_blocks", True, "B.3.3")]
REWARD_MODELS: list[Published] = [("r1", f"reward_{kind}", key, value, "3.1") for kind in ("helpful", "safety") for key, value in [
    ("kind", kind), ("batch_size", 256), ("optimizer.lr", 6e-6), ("epochs", 1), ("max_length", 8192)]]
DATA: list[Published] = [
    ("r1", "preference_prompts", "prompt_counts", {"safety": 106000}, "3.1"),
    *[("r1", "helpful_data", key, value, "3.1") for key, value in [
        ("kind", "helpful"), ("max_rows", 66000), ("responses_per_prompt", 2), ("judgements", 4), ("min_margin", 1.0),
        ("annotator.model", "deepseek-ai/DeepSeek-V3")]],
    ("r1", "safety_data", "kind", "safety", "3.1"), ("r1", "safety_data", "max_rows", 0, "3.1"),
    ("r1", "general", "counts", {"general": 177812}, "Table 5"),
    ("r1", "reasoning_prompts", "prompt_counts", {"math": 26000, "code": 17000, "stem": 22000, "logic": 15000, "helpful": 0, "safety": 0}, "Table 4"),
    ("r1", "all_prompts", "prompt_counts", {"math": 26000, "code": 17000, "stem": 22000, "logic": 15000, "helpful": 66000, "safety": 12000},
     "Table 4 and B.3.1")]
DISTILLED: list[Published] = [(f"distill_{name}", "student", key, value, "Table 6, B.4.3") for name, (_, lr) in STUDENTS.items() for key, value in [
    ("optimizer.lr", lr), ("optimizer.min_lr", lr / 10), ("optimizer.lr_decay_style", "cosine"), ("batch_size", 64), ("max_length", 32768), ("epochs", 2)]]
DISTILLED += [(f"distill_{name}", "data", "counts", {"math": 395285, "code": 211129, "stem": 10124, "logic": 10395, "general": 177812}, "Table 5")
              for name in STUDENTS]
SCORES = [("r1_zero", "score_zero"), *(("r1", f"score_{node}") for node in ("zero", "cold_start", "reasoning_rl", "sft", "all_scenario_rl")),
          *((f"distill_{name}", "score_student") for name in STUDENTS)]
EVALUATION: list[Published] = [(recipe, node, key, value, "D.1") for recipe, node in SCORES for key, value in [
    ("evaluation.samples", 64), ("evaluation.temperature", 0.6), ("evaluation.top_p", 0.95), ("rollout.max_tokens", 32768)]]
V3: list[Published] = [("r1", "zero", f"model.{key}", value, "V3 report 4.2") for key, value in [
    ("num_layers", 61), ("hidden_size", 7168), ("num_attention_heads", 128), ("num_moe_experts", 256), ("moe_router_topk", 8), ("moe_ffn_hidden_size", 2048),
    ("first_dense_layers", 3), ("q_lora_rank", 1536), ("kv_lora_rank", 512), ("mtp_num_layers", 1)]]
TABLE = [*ZERO, *R1_RL, *R1_SFT, *REWARD_MODELS, *DATA, *DISTILLED, *EVALUATION, *V3]

# The students' bases: layers, width, FFN, heads, query groups, rotary base, tied, bias, rotary scaling, vocabulary, parameters as released
BASES = {
    "qwen_1_5b": (28, 1536, 8960, 12, 2, 1e4, True, True, None, 151936, 1.54e9),
    "qwen_7b": (28, 3584, 18944, 28, 4, 1e4, False, True, None, 152064, 7.62e9),
    "qwen_14b": (48, 5120, 13824, 40, 8, 1e6, False, True, None, 152064, 14.8e9),
    "qwen_32b": (64, 5120, 27648, 40, 8, 1e6, False, True, None, 152064, 32.8e9),
    "llama_8b": (32, 4096, 14336, 32, 8, 5e5, False, False, 8.0, 128256, 8.03e9),
    "llama_70b": (80, 8192, 28672, 64, 8, 5e5, False, False, 8.0, 128256, 70.6e9),
}


@functools.cache
def recipe(name: str) -> Recipe:
    return compose_recipe([f"recipe={name}"], plugins.load())


def value_of(tree: Any, key: str) -> Any:
    """The setting below a dotted key."""
    for part in key.split("."):
        tree = tree[part]
    return tree


def test_every_published_value_is_shipped() -> None:
    wrong = []
    for name, node, key, published, source in TABLE:
        shipped = value_of(recipe(name).nodes[node].tree, key)
        same = shipped == pytest.approx(published) if isinstance(published, float) else shipped == published
        if not same:
            wrong.append(f"{name}: stages.{node}.{key} is {shipped}, published is {published} ({source})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", RECIPES)
def test_the_graph_builds_and_every_layout_fits(name: str) -> None:
    host = plugins.load()
    built = graph.build(recipe(name), host)
    assert list(built.nodes) == list(recipe(name).nodes)  # the file tells the stages in an order they can run in
    sizes = {world_size(node, host) for node in recipe(name).nodes.values()}
    assert max(sizes) == {"r1": 512, "r1_zero": 512, "r1_h200_small": 1, "distill_qwen_14b": 16, "distill_qwen_32b": 32, "distill_llama_70b": 64}.get(name, 8)


def test_the_graph_of_r1_is_the_papers() -> None:
    for name in ("r1", "r1_h200_small"):
        nodes = recipe(name).nodes
        sources = {node: {one.partition(".")[0] for one in nodes[node].inputs.values()} for node in nodes}
        assert "base" in sources["zero"]
        assert "zero" in sources["cold_start_data"]
        assert {"base", "cold_start_data"} <= sources["cold_start"]
        assert "cold_start" in sources["reasoning_rl"]
        assert "reasoning_rl" in sources["sft_data"]
        assert {"base", "sft_data", "general"} <= sources["sft"]  # from the base again, not from reasoning_rl
        assert {"sft", "reward_helpful", "reward_safety"} <= sources["all_scenario_rl"]
        if name == "r1":
            assert all(sources[f"{kind}_data"] == {"sft", "preference_prompts"} and f"{kind}_data" in sources[f"reward_{kind}"]
                       for kind in ("helpful", "safety"))
        for model in ("zero", "cold_start", "reasoning_rl", "sft", "all_scenario_rl"):
            assert nodes[f"score_{model}"].inputs["policy"] == f"{model}.checkpoint"


def test_the_layout_of_512_gpus() -> None:
    zero = recipe("r1").nodes["zero"].config
    architecture = plugins.load().registry.get("models", zero.model.name).factory(zero.model.config)
    parallel = zero.parallel
    assert check_layout(architecture, parallel, zero.precision, zero.cluster) == 512
    layout = pipeline_layout(architecture, parallel)
    assert layout is not None
    stages = layout.split("|")
    assert len(stages) == 16
    assert [stage.count("t") for stage in stages].count(4) == 13  # 61 = 13 x 4 + 3 x 3
    assert (stages[0].count("t"), stages[-1].count("t"), stages[-1][-2:]) == (3, 3, "mL")
    per_stage = 512 // parallel.pipeline_model_parallel_size
    assert per_stage % parallel.expert_model_parallel_size == 0
    assert 256 // parallel.expert_model_parallel_size == 8


def test_longest_sequences_fit() -> None:
    for name in ("r1_zero", "r1"):
        for node in recipe(name).nodes.values():
            if node.stage == "rl":
                longest = max([node.config.rollout.config.max_tokens, *(cap.max_tokens for cap in node.config.max_tokens_schedule)])
                assert node.config.micro_batch_tokens - longest >= 8192, node.name  # room for the prompt
                assert node.config.micro_batch_tokens % node.config.parallel.context_parallel_size == 0


@pytest.mark.parametrize("name", STUDENTS)
def test_students_have_their_bases_shape(name: str) -> None:
    node = recipe(f"distill_{name}").nodes["student"]
    model, layers, width = node.tree["model"], *BASES[name][:2]
    _, _, ffn, heads, groups, rotary, tied, bias, scaling, vocabulary, parameters = BASES[name]
    assert (model["num_layers"], model["hidden_size"], model["ffn_hidden_size"], model["num_attention_heads"], model["num_query_groups"], model["rotary_base"],
            model["tied_embeddings"], model["name"] == "qwen2", model.get("rope_scaling_factor")) == (
                layers, width, ffn, heads, groups, rotary, tied, bias, scaling)
    attention = 2 * width * width + 2 * width * width * groups // heads
    counted = layers * (attention + 3 * width * ffn) + vocabulary * width * (1 if tied else 2)
    assert counted == pytest.approx(parameters, rel=0.01)  # the release's own count: a wrong size would show
    assert model["max_position_embeddings"] >= node.tree["max_length"]


def test_templates_and_rewards_agree_on_the_answers_place() -> None:
    """An answer format that the reward does not accept would train towards nothing."""
    from r1mega_plugins.rewards.format import Format, FormatConfig

    from r1mega.data.chat import render_response
    from r1mega.rewards.answers import extract_answer
    from r1mega.types import RewardSample

    for node, said in (("zero", "<think>\nwhy\n</think>\n<answer>\\boxed{7}</answer>"), ("reasoning_rl", None), ("all_scenario_rl", None)):
        config = recipe("r1").nodes[node].config
        check_template(config.template)
        text = said or render_response(config.template.response, "why", "So it is \\boxed{7}.")
        terms = config.reward.terms
        sample = RewardSample(prompt="q", completion=text, answer="7", domain="math", language="en", metadata={})
        assert Format(FormatConfig(**terms["format"].settings)).score([sample])[0].value == 1.0, node
        assert extract_answer(text, terms["accuracy"].settings.get("extract", "answer_tag")).answer == "7", node


def test_every_value_of_a_paper_size_recipe_is_explained() -> None:
    """Each override says where its value comes from: a section of a paper, `ours`, or that it is not published."""
    folder = conf_folder() / "recipe"
    follows = ("model=", "template=", "cluster", "task=", "judge", "kind=", "rewriter", "benchmark=", "reward=", "algorithm=", "annotator=")  # from the graph
    for name in PAPER_SIZE:
        inherited = False  # from the stage above, which the lines after one that says so repeat
        for number, line in enumerate((folder / f"{name}.yaml").read_text().splitlines(), 1):
            text, _, comment = line.partition("#")
            inherited = (inherited or "as all that follows" in comment) and text.strip().startswith("-")
            if not text.strip().startswith("- ") or "=" not in text or text.strip().startswith("- *"):
                continue
            explained = any(word in comment for word in ("v1 ", "v2 ", "V3 ", "ours", "not published", "not stated", "Table"))
            assert explained or inherited or any(key in text for key in follows), f"{name}.yaml:{number}: {text.strip()} has no source"
