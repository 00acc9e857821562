"""The export stage through the command line: what it writes is read by transformers alone, on one rank and on two; killed half-way it leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recipe_plugin import Runs

RECIPE = """\
description: a base, exported
overrides: [model=tiny_deepseek_v3, model.num_layers=2, tokenizer=sentencepiece, task=tiny_world, template=zero_tiny, precision=fp32]
stages:
  base: {stage: pretrain, overrides: [steps=2, documents_per_step=8, tokenizer_documents=400]}
  export: {stage: export, inputs: {policy: base.checkpoint}, overrides: [shard_gigabytes=0.001, check_logits=always]}
"""
JUDGE = """\
description: a reward model, exported
overrides: [model=tiny_dense, model.num_layers=2, tokenizer=sentencepiece, task=tiny_world, template=zero_tiny, precision=fp32]
stages:
  base: {stage: pretrain, overrides: [steps=2, documents_per_step=8, tokenizer_documents=400]}
  pairs: {stage: import_data, overrides: [pairs_path=PAIRS, decontamination.recipe=false]}
  judge:
    stage: reward_model
    inputs: {policy: base.checkpoint, preferences: pairs.preferences}
    overrides: [batch_size=4, max_length=64, micro_batch_tokens=256, held_out=0.25, optimizer.lr=0.01]
  export: {stage: export, inputs: {reward_model: judge.reward_model}, overrides: [check_logits=always]}
"""
CODE = """
import os
import signal

if os.environ.get("KILL_AT_SHARD") and "RANK" in os.environ:  # on a rank, once so many files are there
    import r1mega.policy.hugging_face.export as exporting
    write = exporting.write_shard
    def write_or_die(folder, shard, read):
        write(folder, shard, read)
        if len(list(folder.glob("*.safetensors"))) == int(os.environ["KILL_AT_SHARD"]):
            os.kill(os.getpid(), signal.SIGKILL)
    exporting.write_shard = write_or_die
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("export"), "exported", RECIPE, CODE)
    runs.run("base", "--only", "base")
    runs.run("one")
    return runs


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_transformers_reads_model_tokenizer_and_chat_template(runs: Runs) -> None:
    transformers = pytest.importorskip("transformers")
    folder, metrics = runs.artifact("one", "export", "model"), runs.metrics("one", "export")
    assert metrics["tokenizer_lacks"] == ""
    assert 0 < metrics["logits_difference"] < 1e-4
    assert metrics["files"] > 1
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) + 8 == metrics["parameters"], "the expert bias of one layer is a buffer"
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "12+3=?"}], add_generation_prompt=True, tokenize=False)
    assert prompt == "12+3=?\n"
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    assert model.generate(**inputs, max_new_tokens=5, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    assert (model.generation_config.temperature, model.generation_config.top_p) == (0.6, 0.95)


def test_two_ranks_write_the_same_files(runs: Runs) -> None:
    runs.run("two", "stages.export.parallel=tp2")
    assert files(runs.artifact("two", "export", "model")) == files(runs.artifact("one", "export", "model"))
    assert runs.metrics("two", "export")["logits_difference"] < 1e-4


def test_killed_half_way_it_leaves_no_model_and_the_next_run_ends_as_if_undisturbed(runs: Runs) -> None:
    runs.run("killed", code=1, KILL_AT_SHARD="2")
    assert not (runs.artifact("killed", "export", "model")).exists()
    runs.run("killed")
    assert files(runs.artifact("killed", "export", "model")) == files(runs.artifact("one", "export", "model"))
    assert [path.name for path in runs.artifact("killed", "export", "").iterdir()] == ["model"]


def test_a_reward_model_becomes_a_sequence_classification_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    rows = [{"id": str(i), "prompt": f"{i}+1=?", "chosen": f"It is {i + 1}.", "rejected": "I do not know."} for i in range(16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = Runs(tmp_path, "judged", JUDGE.replace("PAIRS", str(tmp_path / "pairs.jsonl")))
    said = runs.run("one", "stages.export.inputs.policy=base.checkpoint", code=2)
    assert "stages.export.inputs: connect either policy or reward_model, found" in said
    runs.run("one")
    assert runs.metrics("one", "export")["logits_difference"] < 1e-4
    folder = runs.artifact("one", "export", "model")
    assert json.loads((folder / "reward.json").read_text()) == json.loads((runs.artifact("one", "judge", "reward_model") / "reward.json").read_text())
    assert not (folder / "generation_config.json").exists()
    model, tokenizer = transformers.AutoModelForSequenceClassification.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert model.score.weight.abs().max() > 0
    assert model(**tokenizer("1+1=?", return_tensors="pt", return_token_type_ids=False)).logits.shape == (1, 1)
