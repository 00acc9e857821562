"""The export stage through the command line: what it writes is read by transformers alone, on one rank and on two; killed half-way it leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RECIPE = """\
description: a base, exported
overrides: [model=tiny_deepseek_v3, model.num_layers=2, tokenizer=sentencepiece, task=tiny_world, template=zero_tiny, precision=fp32]
stages:
  base: {stage: pretrain, overrides: [steps=2, documents_per_step=8, tokenizer_documents=400]}
  export: {stage: export, inputs: {policy: base.checkpoint}, overrides: [shard_gigabytes=0.001, check_logits=always]}
"""
MODULE = """\
import os
import signal
from pathlib import Path
from r1mega import hookimpl

if os.environ.get("KILL_AT_SHARD") and "RANK" in os.environ:  # on a rank, once so many files are there
    import r1mega.policy.hugging_face.export as exporting
    write = exporting.write_shard
    def write_or_die(folder, shard, read):
        write(folder, shard, read)
        if len(list(folder.glob("*.safetensors"))) == int(os.environ["KILL_AT_SHARD"]):
            os.kill(os.getpid(), signal.SIGKILL)
    exporting.write_shard = write_or_die

@hookimpl
def config_search_path():
    return f"file://{Path(__file__).parent / 'conf'}"
"""


class Runs:
    """Copies of one run folder in which the base is done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        plugin = folder / "plugin"
        info = plugin / "exported-1.0.dist-info"
        (plugin / "conf" / "recipe").mkdir(parents=True)
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: exported\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[r1mega]\nexported = exported_plugin\n")
        (plugin / "exported_plugin.py").write_text(MODULE)
        (plugin / "conf" / "recipe" / "exported.yaml").write_text(RECIPE)
        path = os.pathsep.join(filter(None, (str(plugin), os.environ.get("PYTHONPATH"))))
        self.environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def run(self, name: str, *overrides: str, code: int = 0, **environment: str) -> str:
        if name != "base" and not (self.folder / name).exists():
            shutil.copytree(self.folder / "base", self.folder / name, symlinks=True)
        command = [sys.executable, "-m", "r1mega", "run", "recipe=exported", f"output_dir={self.folder / name}", *overrides]
        done = subprocess.run(command, env=self.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200,
                              check=False)
        assert done.returncode == code, done.stdout[-3000:]
        return done.stdout

    def artifacts(self, name: str) -> Path:
        return self.folder / name / "stages" / "export" / "current" / "artifacts"

    def metrics(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / name / "summary.json").read_text())["stages"]["export"]["metrics"]
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("export"))
    runs.run("base", "--only", "base")
    runs.run("one")
    return runs


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_transformers_reads_model_tokenizer_and_chat_template(runs: Runs) -> None:
    transformers = pytest.importorskip("transformers")
    folder, metrics = runs.artifacts("one") / "model", runs.metrics("one")
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
    assert files(runs.artifacts("two") / "model") == files(runs.artifacts("one") / "model")
    assert runs.metrics("two")["logits_difference"] < 1e-4


def test_killed_half_way_it_leaves_no_model_and_the_next_run_ends_as_if_undisturbed(runs: Runs) -> None:
    runs.run("killed", code=1, KILL_AT_SHARD="2")
    assert not (runs.artifacts("killed") / "model").exists()
    runs.run("killed")
    assert files(runs.artifacts("killed") / "model") == files(runs.artifacts("one") / "model")
    assert [path.name for path in runs.artifacts("killed").iterdir()] == ["model"]
