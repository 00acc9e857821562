"""What `r1mega chat` talks to: a checkpoint artifact of a run or a Hugging Face folder, with its tokenizer and conversation format. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from r1mega import strict
from r1mega.compose_hydra import parse, session
from r1mega.config import PrecisionConfig, TemplateConfig
from r1mega.data.chat import check_template
from r1mega.data.released_template import has_template
from r1mega.errors import ConfigError, DataError, UserError
from r1mega.plugins import Host
from r1mega.policy.architecture import Architecture

if TYPE_CHECKING:
    from r1mega.hookspecs import Tokenizer
    from r1mega.policy.hugging_face.family import Family

ARCHITECTURE, REWARD, CONFIG = "architecture.json", "reward.json", "config.json"
GROUPS = ("template", "tokenizer", "precision", "model")


@dataclass(frozen=True)
class Checkpoint:
    """Everything but the weights."""

    folder: Path
    family: Family | None  # None: an artifact of ours
    architecture: Architecture
    vocab_size: int
    tokenizer: Tokenizer
    stop_token_ids: tuple[int, ...]
    template: TemplateConfig
    template_source: str  # in words
    precision: PrecisionConfig | None  # None: as the device is best at


def read_checkpoint(folder: Path, overrides: Sequence[str], host: Host) -> Checkpoint:
    """Raises `UserError` for a folder that is neither kind of checkpoint, a tokenizer that does not fit, and overrides that do not."""
    settings = _settings(overrides, host)
    ours = (folder / ARCHITECTURE).is_file()
    if not ours and not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is no checkpoint{'' if folder.is_dir() else ': there is no such folder'}; expected artifacts/checkpoint of a finished "
                        f"stage (with {ARCHITECTURE}) or a Hugging Face model (with {CONFIG})")
    family, architecture, vocab_size = _our_model(folder) if ours else _their_model(folder, settings.get("model", {}).get("ignore", []))
    files = folder / "tokenizer" if ours else folder
    tokenizer = _tokenizer(files, settings.get("tokenizer", {}), host)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(f"the tokenizer in {files} has {tokenizer.vocab_size} tokens, the model in {folder} a vocabulary of {vocab_size}: they do not belong "
                        "together; put the model's own tokenizer there")
    template, source = _template(folder, files, settings.get("template"), ours)
    precision = strict.build(PrecisionConfig, settings["precision"], "precision") if "precision" in settings else None
    return Checkpoint(folder, family, architecture, vocab_size, tokenizer, _stop_tokens(files, tokenizer), template, source, precision)


def _settings(overrides: Sequence[str], host: Host) -> dict[str, dict[str, Any]]:
    """Group -> its settings, of the groups that the overrides name: a choice's file first, then single values."""
    choices, values = dict[str, tuple[str, str]](), list[tuple[str, str, Any]]()
    for text in overrides:
        parsed = parse(text)
        group, _, key = parsed.key_or_group.partition(".")
        if group not in GROUPS or parsed.is_delete() or (group == "tokenizer" and not key) or (group == "model" and key != "ignore"):
            raise ConfigError(f"override '{text}': chat takes template=NAME, template.KEY=VALUE, tokenizer.KEY=VALUE, precision=NAME and model.ignore=[KEY]")
        if key:
            values.append((group, key, parsed.value()))
        else:
            choices[group] = (str(parsed.value()), text)
    found: dict[str, dict[str, Any]] = {}
    with session(host) as hydra:
        for group, (choice, text) in choices.items():
            hydra.check_choice(group, choice, f"override '{text}'")
            found[group] = hydra.compose(f"{group}/{choice}")[group]
    for group, key, value in values:
        found.setdefault(group, {})[key] = value
    return found


def _our_model(folder: Path) -> tuple[None, Architecture, int]:
    file = folder / ARCHITECTURE
    if (folder / REWARD).is_file():
        raise UserError(f"{folder} is a reward model, which has nothing to say; name a stage's artifacts/checkpoint")
    try:
        about = json.loads(file.read_bytes())
        return None, Architecture.from_dict(about["architecture"]), int(about["vocab_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not the architecture of a checkpoint: {error!r}") from error


def _their_model(folder: Path, ignore: Sequence[str]) -> tuple[Family, Architecture, int]:
    from r1mega.policy.hugging_face.config_json import read_published

    published = read_published(folder, ignore=ignore)
    if published.is_reward_model:
        raise UserError(f"{folder} is a reward model, which has nothing to say; name one with a vocabulary's head")
    return published.family, published.architecture, published.vocab_size


def _tokenizer(folder: Path, settings: Mapping[str, Any], host: Host) -> Tokenizer:
    kinds = {"tokenizer.json": "huggingface", "tokenizer.model": "sentencepiece"}
    kind = next((kind for name, kind in kinds.items() if (folder / name).is_file()), None)
    if kind is None:
        raise UserError(f"{folder} holds no tokenizer: expected {' or '.join(kinds)}")
    plugin = host.registry.get("tokenizers", kind)
    assert plugin.config is not None
    tokenizer: Tokenizer = plugin.factory(strict.build(plugin.config, dict(settings), "tokenizer"), folder=folder)
    return tokenizer


def _stop_tokens(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokenizer's end of sequence, and what generation_config.json has besides."""
    file = folder / "generation_config.json"
    try:
        stated = json.loads(file.read_bytes()).get("eos_token_id") if file.is_file() else None
    except (ValueError, AttributeError) as error:
        raise DataError(f"{file}: expected a JSON object: {error}") from error
    listed = stated if isinstance(stated, list) else [stated]
    return tuple(dict.fromkeys((tokenizer.eos_id, *(token for token in listed if isinstance(token, int)))))


def _template(folder: Path, files: Path, chosen: Mapping[str, Any] | None, ours: bool) -> tuple[TemplateConfig, str]:
    """The conversation format and where it is from: what the user says, else what the run says, else what the tokenizer's files say, else none."""
    if chosen is not None:
        template = strict.build(TemplateConfig, chosen, "template")
        check_template(template)
        if "{question}" not in template.prompt:
            raise ConfigError("template.path must name a folder with a chat template")
        return template, "as given"
    trained = template_of_run(folder) if ours else None
    if trained is not None:
        return trained, "the one of the run that made it"
    if has_template(files):
        try:  # an opening of the reasoning stays in the prompt: the model is asked exactly as its template asks
            return TemplateConfig(path=str(files), response="{response}"), f"the chat template in {files}"
        except ConfigError as error:
            raise ConfigError(f"{error}, as template=NAME") from error
    return TemplateConfig(), "plain text: the checkpoint has no chat template (template=NAME chooses one)"


def template_of_run(folder: Path) -> TemplateConfig | None:
    """The template of the stage that made the artifact, by the config.yaml beside it; None where there is none, or it is the plain question."""
    file = folder.resolve().parent.parent / "config.yaml"
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    except yaml.YAMLError as error:
        raise DataError(f"{file}: not valid YAML: {' '.join(str(error).split())}; choose a template with template=NAME") from error
    stated = tree.get("template") if isinstance(tree, dict) else None
    if not isinstance(stated, dict):
        return None
    known = {key: value for key, value in stated.items() if key in ("prompt", "response", "turn", "system")}  # as the run read them, wherever from
    template = strict.build(TemplateConfig, known, f"{file}: template")
    return template if template.prompt != "{question}" else None
