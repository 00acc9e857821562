"""One checkpoint, one purpose: `r1mega convert` and `r1mega eval` as the small recipes that they are, resumable like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from r1mega import compose
from r1mega.errors import UserError
from r1mega.plugins import Host
from r1mega.recipe import files, runner
from r1mega.recipe.artifacts import RunFolder

Target = Literal["hf", "megatron"]
OURS, THEIRS = "architecture.json", "config.json"  # what says which kind of checkpoint a folder holds


@dataclass(frozen=True)
class Held:
    """A checkpoint in a folder, of either kind."""

    folder: Path
    published: bool  # a Hugging Face folder; else an artifact of a stage
    overrides: tuple[str, ...]  # the model, the tokenizer and the number format it is made of

    def merged(self, users: Sequence[str]) -> list[str]:
        """Its own overrides, then the user's; the path of the model goes where the user chooses another."""
        chosen = any(text.startswith("model=") for text in users)
        return [text for text in self.overrides if not (chosen and text.startswith("model"))] + list(users)


def find(folder: Path) -> Held:
    """What kind of checkpoint a folder holds. Raises `UserError` where it holds none."""
    folder = folder.expanduser().resolve()
    ours, theirs = (folder / OURS).is_file(), (folder / THEIRS).is_file()
    if not (ours or theirs):
        raise UserError(f"{folder} holds no checkpoint: expected {THEIRS} (a Hugging Face folder) or {OURS} (artifacts/checkpoint of a stage)")
    tokens = folder / "tokenizer" if ours else folder
    tokenizer = "sentencepiece" if not (tokens / "tokenizer.json").is_file() and (tokens / "tokenizer.model").is_file() else "huggingface"
    stated = files.read_json(folder / THEIRS) if not ours else {}
    precision = "fp32" if (stated.get("dtype") or stated.get("torch_dtype")) == "float32" else "bf16"
    return Held(folder, not ours, ("model=released", f"model.path={_quoted(folder)}", f"tokenizer={tokenizer}", *(() if ours else (f"precision={precision}",))))


def convert(host: Host, target: Target, source: Path, folder: Path, overrides: Sequence[str], *, logits: bool) -> dict[str, Any]:
    """Convert `source` to `folder`, which appears whole. Returns the counts of the stage that did it.

    Every bit is compared; with `logits` also what transformers and the policy compute. Raises `UserError` for a source of the wrong kind or a target that
    exists. A conversion that was interrupted goes on when it is asked for again.
    """
    held = find(source)
    if held.published != (target == "megatron"):
        kinds = {False: f"a checkpoint artifact ({OURS})", True: f"a Hugging Face folder ({THEIRS})"}
        raise UserError(f"convert {target}: {held.folder} is {kinds[held.published]} already; expected {kinds[not held.published]}")
    folder = folder.expanduser().absolute()
    if folder.exists():
        raise UserError(f"{folder} exists; name a folder that does not, or remove this one")
    work = folder.with_name(f".{folder.name}.converting")
    first = "model" if target == "megatron" else "base"
    written = [f"recipe=convert_{target}", f"output_dir={_quoted(work)}", f"stages.{first}.path={_quoted(held.folder)}",
               f"stages.model.check_logits={'always' if logits else 'never'}", *held.merged(overrides)]
    if code := runner.run(compose.compose_recipe(written, host), host):
        raise SystemExit(code)
    stage = RunFolder(work).stage("model")
    made = stage / "artifacts" / ("checkpoint" if target == "megatron" else "model")
    metrics: dict[str, Any] = files.read_json(stage / "manifest.json")["metrics"]
    made.resolve().rename(folder)
    files.sync(folder.parent)
    shutil.rmtree(work)
    return metrics


def evaluate(host: Host, checkpoint: Path, overrides: Sequence[str]) -> Path:
    """Measure a checkpoint of either kind with the stage `evaluate`; returns the run folder (`output_dir`), whose summary.json has the measures."""
    held = find(checkpoint)
    kind = ["stages.base.stage=import_hf"] if held.published else []
    written = ["recipe=evaluate", f"output_dir=runs/eval_{held.folder.name}", *kind, f"stages.base.path={_quoted(held.folder)}", *held.merged(overrides)]
    recipe = compose.compose_recipe(written, host)
    if code := runner.run(recipe, host):
        raise SystemExit(code)
    return recipe.output_dir


def _quoted(path: Path) -> str:
    """As Hydra's grammar takes any text."""
    return json.dumps(str(path), ensure_ascii=False)
