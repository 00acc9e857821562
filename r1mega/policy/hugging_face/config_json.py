"""A released model's config.json: which family it is of, and its architecture. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r1mega import plugins
from r1mega.errors import ConfigError, DataError, nearest
from r1mega.policy.architecture import Architecture
from r1mega.policy.hugging_face.family import Family
from r1mega.policy.hugging_face.settings import Settings
from r1mega.recipe import files

FILE = "config.json"


@dataclass(frozen=True)
class Published:
    """What a folder's config.json says."""

    path: Path  # of config.json
    family: Family
    architecture: Architecture
    vocab_size: int  # rows of the embedding; the tokenizer may have fewer tokens
    settings: dict[str, Any]  # the file's content

    @property
    def dtype(self) -> str:
        """The format of the weights as stated, such as bfloat16; "" where it is not."""
        stated = self.settings.get("dtype") or self.settings.get("torch_dtype") or ""
        return str(stated)

    @property
    def is_reward_model(self) -> bool:
        """Whether a scalar head is in place of the vocabulary's."""
        return any(str(name).endswith("ForSequenceClassification") for name in self.settings.get("architectures") or ())


def is_half_precision(folder: Path) -> bool:
    """Whether bf16 loses nothing: all matrices in the folder's safetensors are stored in it, or in FP8. Only the files' headers are read."""
    formats: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            try:
                header: dict[str, Any] = json.loads(stream.read(min(size, file.stat().st_size)))
                formats |= {about["dtype"] for name, about in header.items() if name != "__metadata__" and len(about["shape"]) > 1
                            and not name.endswith("_scale_inv")}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{file}: not a whole safetensors file: {error!r}") from error
    return bool(formats) and formats <= {"BF16", "F8_E4M3"}


def registered_families() -> list[Family]:
    """The families of all model plugins."""
    registry = plugins.load().registry
    found = {family.model_type: family for name in registry.names("models") for family in getattr(registry.get("models", name).factory, "hugging_face", ())}
    return list(found.values())


def read_published(path: Path, families: Sequence[Family] | None = None, ignore: Collection[str] = ()) -> Published:
    """Read the config.json at `path`, or in the folder `path`; keys in `ignore` are taken to change nothing.

    Raises `DataError` for a missing or damaged file, `ConfigError` for a model of another family or one that its family cannot express exactly.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file}: no such file; expected the folder of a Hugging Face model")
    values = files.read_object(file)
    by_type = {family.model_type: family for family in (registered_families() if families is None else families)}
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in by_type:
        raise ConfigError(f"{file}: model_type={kind!r} is of no known family.{nearest(str(kind), by_type)} Known: {', '.join(sorted(by_type))}; a model "
                          "plugin adds a family")
    settings = Settings(values, f"{file}: this model")
    architecture = by_type[kind].read(settings)
    vocab_size = settings.integer("vocab_size")
    if settings.problems == []:
        settings.problems += by_type[kind].refusals(architecture)
    settings.check(ignore)
    return Published(file, by_type[kind], architecture, vocab_size, values)


def restated(source: Path, family: Family, architecture: Architecture, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of an export: that of the release the model began with, `source`, where it still describes it; else `settings`.

    The release's own keys and spellings stay, for whoever reads them, but for the number format, the quantisation, the class, and what a recipe may set.
    """
    if not source.is_file():
        return dict(settings)
    values = files.read_object(source)
    try:
        stated = read_published(source, [family], ignore=values.keys())
    except ConfigError:  # of another model, or one that was changed since
        return dict(settings)
    free: dict[str, Any] = {"max_position_embeddings": 0, "init_method_std": 0.0, "mtp_num_layers": 0}
    if replace(stated.architecture.canonical(), **free) != replace(architecture.canonical(), **free) or stated.vocab_size != settings["vocab_size"]:
        return dict(settings)
    for name in ("quantization_config", "auto_map"):  # the weights are dequantised; the code that auto_map names is not exported
        values.pop(name, None)
    values["dtype" if "dtype" in values else "torch_dtype"] = settings["torch_dtype"]
    eos = values.get("eos_token_id")
    ends = settings.get("eos_token_id") in (eos if isinstance(eos, list) else [eos])
    own = ["architectures", "max_position_embeddings", "num_nextn_predict_layers", *([] if ends else ["eos_token_id"])]
    if "num_labels" in settings:  # a reward model: see `model_config`
        own += ["num_labels", "id2label", "label2id", "pad_token_id", "eos_token_id"]
    return values | {name: settings[name] for name in own if name in settings}
