"""From a Hugging Face folder through a recipe to a Hugging Face folder, by the commands that a user gives; and what is refused on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hf_checkpoints as hf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.timeout(300)
MODEL = "qwen3-moe"


def r1mega(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "r1mega", *arguments], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
                          capture_output=True, text=True, timeout=200, check=False)


def done(folder: Path, *arguments: str) -> str:
    process = r1mega(folder, *arguments)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a release of random weights in `model`."""
    folder = tmp_path_factory.mktemp("release")
    hf.make(MODEL, folder / "model", num_hidden_layers=2)
    hf.add_tokenizer(folder / "model")
    return folder


def test_a_recipe_that_begins_with_a_release_ends_in_one_that_transformers_loads(tmp_path: Path) -> None:
    """The release is a base that knows the format and few answers, so that there is something to learn from the first step on."""
    done(tmp_path, "run", "recipe=r1_zero_tiny", "output_dir=bases", "parallel=single", "stages.base.steps=150", "--only", "base")
    done(tmp_path, "convert", "hf", "bases/stages/base/current/artifacts/checkpoint", "model")
    done(tmp_path, "run", "recipe=r1_zero_tiny", "model=released", "model.path=model", "tokenizer=huggingface", "stages.base.stage=import_hf",
         "stages.base.path=model", "output_dir=run", "stages.zero.steps=2", "stages.zero.prompts_per_rollout=8", "evaluation.max_problems=4")
    manifest = json.loads((tmp_path / "run/stages/base/current/manifest.json").read_text())
    assert manifest["metrics"]["logits_difference"] <= 1e-5
    told = done(tmp_path, "convert", "hf", "run/stages/zero/current/artifacts/checkpoint", "zero", "--check")
    assert "every bit compared, logits within" in told
    conversation = [{"role": "user", "content": "1+1="}]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "zero")
    assert tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False) == "1+1=\n", "not the template that zero trained with"
    trained, before = hf.tensors(tmp_path / "zero"), hf.tensors(tmp_path / "model")
    assert trained.keys() == before.keys()
    assert sum(not torch.equal(trained[name], before[name]) for name in before) > len(before) / 2, "two updates must have moved the weights"
    assert [path.name for path in tmp_path.iterdir() if "converting" in path.name] == []
    theirs, ours = _greedy_by_transformers(tmp_path / "zero"), _greedy(tmp_path, "run/stages/zero/current/artifacts/checkpoint")
    assert len(ours) == 6
    assert {prompt: theirs(prompt) for prompt in ours} == ours
    assert any("</think>" in text for text in ours.values()), "a base that has learned the format says more than noise"
    assert _greedy(tmp_path, "zero") == ours, "eval of the Hugging Face folder generates something else than eval of the checkpoint"


def test_there_and_back_the_bits_are_the_same(work: Path) -> None:
    """And so are the config.json, the chat template and the recommended sampling of the release, in a folder of an awkward name."""
    (work / "model/chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (work / "model/generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5], "temperature": 0.3}))
    assert "logits within" in done(work, "convert", "megatron", "model", "there", "--check")
    done(work, "convert", "hf", "there", "it's = back, {and} \\")
    (work / "it's = back, {and} \\").rename(work / "back")
    there, back = hf.tensors(work / "model"), hf.tensors(work / "back")
    assert there.keys() == back.keys()
    assert all(torch.equal(there[name].view(torch.uint8), back[name].view(torch.uint8)) for name in there)
    configs = [json.loads((work / name / "config.json").read_text()) for name in ("model", "back")]
    assert configs[0] == configs[1], "an unchanged model keeps the release's own config.json"
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert (work / "back" / name).read_bytes() == (work / "model" / name).read_bytes(), name
    again = r1mega(work, "convert", "megatron", "model", "there")
    assert again.returncode == 2
    assert "there exists" in again.stderr
    other = r1mega(work, "convert", "hf", "model", "new")
    assert other.returncode == 2
    assert "is a Hugging Face folder (config.json) already; expected a checkpoint artifact (architecture.json)" in other.stderr


def _truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _shard_missing(folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    names = sorted(held)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: held[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()


def _tensors_wrong(folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    del held["model.layers.1.mlp.experts.3.up_proj.weight"]
    held["model.norm.weight"] = held["model.norm.weight"][:-1].clone()
    held["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    save_file(held, folder / "model.safetensors")


def _config(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


REFUSALS = {
    "truncated": (_truncated, [], ["model.safetensors", "not a whole safetensors file"]),
    "shard missing": (_shard_missing, [], ["model-00002-of-00002.safetensors is missing", "model.safetensors.index.json names it"]),
    "tensors": (_tensors_wrong, [], ["it lacks: model.layers.1.mlp.experts.3.up_proj.weight", "it has besides: model.layers.0.self_attn.q_proj.bias",
                                     "model.norm.weight is [31] there and [32] here"]),
    "another model": (lambda _: None, ["model=tiny_qwen3_moe"], ["of another model", "hidden_size is 32 there and 128 here"]),
    "rope": (_config(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), [], ["config.json", "rope type 'longrope'"]),
    "vocabulary": (_config(vocab_size=90), [], ["vocab_size=90", "tokenizer.json", "do not belong together"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_wrong_is_named(case: str, work: Path) -> None:
    damage, overrides, told = REFUSALS[case]
    folder = work / f"bad {case}"
    shutil.copytree(work / "model", folder)
    damage(folder)
    process = r1mega(work, "convert", "megatron", folder.name, f"{case} made", *overrides)
    last = process.stderr.strip().splitlines()[-1]
    assert process.returncode == 2, process.stdout[-2000:] + process.stderr[-2000:]
    assert all(part in last for part in told), last
    assert not (work / f"{case} made").exists()
    assert not (work / f".{case} made.converting").exists()


def test_a_mistake_leaves_what_another_conversion_has_begun(work: Path) -> None:
    (begun := work / ".begun.converting/stages").mkdir(parents=True)
    assert r1mega(work, "convert", "megatron", "model", "begun", "stages.model.no_such=1").returncode == 2
    assert begun.is_dir()


def test_a_folder_that_holds_nothing(work: Path) -> None:
    process = r1mega(work, "eval", ".")
    assert process.returncode == 2
    assert "holds no checkpoint: expected config.json (a Hugging Face folder) or architecture.json (artifacts/checkpoint of a stage)" in process.stderr


def _greedy(work: Path, checkpoint: str) -> dict[str, str]:
    """Prompt -> completion of a few problems, by `r1mega eval`, asked as the run, or the folder's chat template, does."""
    run = f"eval-{Path(checkpoint).name}"
    done(work, "eval", checkpoint, "task=arithmetic", "precision=fp32", "rollout.max_tokens=24", "evaluation.max_problems=6",
         "evaluation.samples=1", "evaluation.temperature=0", f"output_dir={run}")
    file = work / run / "stages/score/current/rollouts/samples.jsonl"
    return {row["prompt"]: row["completion"] for row in map(json.loads, file.read_text().splitlines())}


def _greedy_by_transformers(folder: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def answer(prompt: str) -> str:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        return str(tokenizer.decode(made[0, ids.shape[1]:], skip_special_tokens=True))

    return answer
