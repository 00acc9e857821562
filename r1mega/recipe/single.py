"""One checkpoint, one purpose: `r1mega convert` and `r1mega eval` as the small recipes that they are, resumable like any other."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from r1mega import compose
from r1mega.config import TemplateConfig
from r1mega.data.released_template import has_template
from r1mega.errors import UserError
from r1mega.plugins import Host
from r1mega.policy.hugging_face.config_json import is_half_precision
from r1mega.recipe import files, runner
from r1mega.recipe.artifacts import RunFolder
from r1mega.talk_checkpoint import template_of_run

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
    folder = folder.resolve()
    ours, theirs = (folder / OURS).is_file(), (folder / THEIRS).is_file()
    if not (ours or theirs):
        raise UserError(f"{folder} holds no checkpoint: expected {THEIRS} (a Hugging Face folder) or {OURS} (artifacts/checkpoint of a stage)")
    if (folder / "reward.json").is_file():
        raise UserError(f"{folder} is a reward model (reward.json), which says nothing; in a recipe, the stage export takes one as its input reward_model")
    tokens = folder / "tokenizer" if ours else folder
    tokenizer = "sentencepiece" if not (tokens / "tokenizer.json").is_file() and (tokens / "tokenizer.model").is_file() else "huggingface"
    precision = () if ours else (f"precision={'bf16' if is_half_precision(folder) else 'fp32'}",)
    return Held(folder, not ours, ("model=released", f"model.path={_quoted(folder)}", f"tokenizer={tokenizer}", *precision))


def convert(host: Host, target: Target, source: Path, folder: Path, overrides: Sequence[str], *, logits: bool) -> dict[str, Any]:
    """Convert `source` to `folder`, which appears whole. Returns the counts of the stage that did it.

    Every bit is compared; with `logits` also what transformers and the policy compute. Raises `UserError` for a source of the wrong kind or a target that
    exists. A conversion that was interrupted goes on when it is asked for again.
    """
    held = find(source)
    if held.published != (target == "megatron"):
        kinds = {False: f"a checkpoint artifact ({OURS})", True: f"a Hugging Face folder ({THEIRS})"}
        raise UserError(f"convert {target}: {held.folder} is {kinds[held.published]} already; expected {kinds[not held.published]}")
    folder = folder.absolute()
    work = folder.with_name(f".{folder.name}.converting")
    if os.path.lexists(folder):
        shutil.rmtree(work, ignore_errors=True)  # of a conversion that ended between its last two steps
        raise UserError(f"{folder} exists; name a folder that does not, or remove this one")
    if held.folder in folder.parents:
        raise UserError(f"{folder} is inside {held.folder}, whose content it would change; name a folder elsewhere")
    first = "model" if target == "megatron" else "base"
    written = [*held.merged(overrides), *(_conversation(held.folder, overrides) if target == "hf" else []), f"recipe=convert_{target}",
               f"output_dir={_quoted(work)}", f"stages.{first}.path={_quoted(held.folder)}", f"stages.model.check_logits={'always' if logits else 'never'}"]
    begun = work.exists()  # by an interrupted conversion, or one that is running now
    try:
        code = runner.run(compose.compose_recipe(written, host), host, report=False)
    except UserError:
        if not begun:
            shutil.rmtree(work, ignore_errors=True)  # nothing in it outlasts the mistake
        raise
    if code:
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
    name = f"eval_{held.folder.name}_{hashlib.sha256(str(held.folder).encode()).hexdigest()[:8]}"  # every artifact is called checkpoint
    written = [f"output_dir={_quoted(Path('runs', name))}", *_asked_in(held, overrides), *held.merged(overrides), "recipe=evaluate", *kind,
               f"stages.base.path={_quoted(held.folder)}"]
    recipe = compose.compose_recipe(written, host)
    if code := runner.run(recipe, host):
        raise SystemExit(code)
    return recipe.output_dir


def _conversation(artifact: Path, overrides: Sequence[str]) -> list[str]:
    """What the export says about conversations, unless the user does: the template that the run trained with, else what the release had."""
    if any(text.startswith("template") for text in overrides):
        return []
    trained = template_of_run(artifact)
    print(f"conversation: {'as the run trained it' if trained else 'as the release has it'} (template=NAME chooses another)")
    return ["stages.model.conversation=source"] if trained is None else _spelled(trained)


def _asked_in(held: Held, overrides: Sequence[str]) -> list[str]:
    """The conversation in which a model is measured, unless the user says: its run's, else its release's, else the stage's own."""
    if any(text.startswith("template") for text in overrides):
        return []
    tokens = held.folder if held.published else held.folder / "tokenizer"
    template, where = None if held.published else template_of_run(held.folder), "as the run trained it"
    if template is None and has_template(tokens):  # an opening of the reasoning stays in the prompt: the model is asked exactly as its template asks
        template, where = TemplateConfig(path=str(tokens), response="{response}"), f"the chat template in {tokens}"
    print(f"conversation: {where if template else 'the default of the stage; the checkpoint states none'} (template=NAME chooses another)")
    return _spelled(template) if template else []


def _spelled(template: TemplateConfig) -> list[str]:
    return [f"template.{key}={_quoted(getattr(template, key))}" for key in ("prompt", "response", "turn", "system")]


def _quoted(text: str | Path) -> str:
    """Any text in Hydra's grammar: in single quotes, where a backslash means something before a quote alone. Raises `UserError` for an interpolation."""
    if "${" in str(text):
        raise UserError(f"{text}: a path with '${{' cannot be given to a stage; rename it")
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(text)) + "'"
