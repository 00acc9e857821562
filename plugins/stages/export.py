"""Write a checkpoint or a reward model as the Hugging Face libraries and serving engines read it, and prove that it is the same model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from r1mega import hookimpl, plugins
from r1mega.config import PluginChoice, PrecisionConfig, StageCommon
from r1mega.errors import ConfigError, R1MegaError
from r1mega.hookspecs import Register
from r1mega.recipe import files
from r1mega.recipe.context import StageContext
from r1mega.rewards.model import CARD, RewardCard

from ._setup import load_tokenizer, make

if TYPE_CHECKING:
    from r1mega.policy.hugging_face.export import Export
    from r1mega.policy.ranks import Ranks

GENERATION = "generation_config.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerationDefaults:
    """What generation_config.json recommends."""

    temperature: float = 0.6
    top_p: float = 0.95


@dataclass(frozen=True)
class ExportConfig(StageCommon):
    """The format of the weights, and how they are checked. Every written byte is compared with the checkpoint in any case."""

    dtype: Literal["stored", "fp32", "bf16"] = "stored"  # the router's expert bias stays fp32
    shard_gigabytes: float = 5.0  # of a file, and of a rank's memory
    conversation: Literal["template", "source"] = "template"  # whose chat template and generation_config.json: the recipe's, or those the tokenizer has
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    check_logits: Literal["auto", "always", "never"] = "auto"  # against transformers, in fp32; auto: where it is installed and the model small enough
    check_logits_max_parameters: int = 500_000_000  # what small enough is
    logits_tolerance: float = 1e-4  # nats, of log-probabilities and entropies; of a reward model, of its values

    def __post_init__(self) -> None:
        if self.shard_gigabytes <= 0:
            raise ConfigError(f"shard_gigabytes must be above 0, got {self.shard_gigabytes}")
        if self.logits_tolerance <= 0:
            raise ConfigError(f"logits_tolerance must be above 0, got {self.logits_tolerance}")


class ExportStage:
    """A checkpoint as a Hugging Face folder: safetensors, config.json, tokenizer, chat template; compared with the checkpoint bit by bit.

    Of its inputs exactly one is connected. A reward model becomes a sequence classification model with one label, beside it its reward.json.
    """

    version: ClassVar[str] = "1"
    inputs: ClassVar[Mapping[str, str]] = {"policy": "Checkpoint?", "reward_model": "RewardModel?"}
    outputs: ClassVar[Mapping[str, str]] = {"model": "HuggingFaceModel"}

    def __init__(self, config: ExportConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Returns the counts, the largest difference between transformers' logits and ours (None: not compared), and what the tokenizer lacks."""
        from r1mega.policy.hugging_face import export as exporting

        if len(context.inputs) != 1:
            raise ConfigError(f"stages.{context.name}.inputs: connect either policy or reward_model, found {', '.join(context.inputs) or 'neither'}")
        config, ((kind, source),) = self.config, context.inputs.items()
        card = RewardCard.load(source) if kind == "reward_model" else None
        tokenizer = load_tokenizer(config, source)
        ranks = exporting.join(config.parallel, config.seed, config.cluster.timeout_minutes)
        export = self._export(source, tokenizer.vocab_size, tokenizer.eos_id, ranks, reward=card is not None)
        told: dict[str, Any] = {"logits_difference": None, "tokenizer_lacks": ""}

        def extra(folder: Path) -> None:
            from r1mega.policy.hugging_face.tokenizer import write_tokenizer

            told["tokenizer_lacks"] = write_tokenizer(source / "tokenizer", tokenizer, None if config.conversation == "source" else config.template, folder)
            if told["tokenizer_lacks"]:
                _log.warning("transformers cannot use the exported tokenizer: it is %s", told["tokenizer_lacks"])
            if card is not None:
                files.write_json(folder / CARD, vars(card))
                return
            released = source / "tokenizer" / GENERATION
            if config.conversation == "source" and released.is_file():
                files.write_bytes(folder / GENERATION, released.read_bytes())
                return
            files.write_json(folder / GENERATION, {"do_sample": True, **dataclasses.asdict(config.generation), "eos_token_id": tokenizer.eos_id})

        def check(folder: Path) -> None:
            told["logits_difference"] = self._check_logits(export, folder)

        counts = exporting.export_weights(export, ranks, context.output("model"), extra=extra, check=check, before_rename=context.check_epoch)
        return {**counts, **told}

    def _export(self, source: Path, vocab_size: int, eos_id: int, ranks: Ranks, *, reward: bool) -> Export:
        """What to export. Raises `UserError` for a checkpoint of another model, `ConfigError` for one that no Hugging Face family can express."""
        import torch

        from r1mega.policy import artifact, storage
        from r1mega.policy.hugging_face import parity
        from r1mega.policy.hugging_face.config_json import registered_families
        from r1mega.policy.hugging_face.export import Export
        from r1mega.policy.hugging_face.family import choose_family

        config = self.config
        assert isinstance(config.model, PluginChoice)
        if damage := storage.find_damage(ranks, source):
            raise R1MegaError(f"the weights in {source} are damaged: {damage}; run the stage that made them again")
        about = storage.on_first_rank(ranks, f"cannot read {source}", source, lambda: files.read_json(source / artifact.ARCHITECTURE))
        architecture = make("models", config.model)
        artifact.check_architecture(about, architecture, vocab_size, source, mtp_optional=True)
        architecture = dataclasses.replace(architecture, mtp_num_layers=about["architecture"]["mtp_num_layers"])
        factory = plugins.load().registry.get("models", config.model.name).factory
        family = choose_family(getattr(factory, "hugging_face", ()) or registered_families(), architecture)
        if reward:
            parity.require_reward_class(family)
        dtype = {"stored": None, "fp32": torch.float32, "bf16": torch.bfloat16}[config.dtype]
        return Export(source, family, architecture, vocab_size, eos_id, dtype, int(config.shard_gigabytes * 1e9), reward)

    def _check_logits(self, export: Export, folder: Path) -> float | None:
        """A collective."""
        from r1mega.policy.hugging_face import parity
        from r1mega.policy.hugging_face.published import INDEX
        from r1mega.policy.policy import Policy

        config = self.config
        parameters = files.read_json(folder / INDEX)["metadata"]["total_parameters"]
        possible = parity.transformers_installed() and parameters <= config.check_logits_max_parameters
        if config.check_logits == "never" or (config.check_logits == "auto" and not possible):
            _log.info("logits are not compared with transformers' (check_logits=%s, %d parameters, transformers %s)", config.check_logits, parameters,
                      "installed" if parity.transformers_installed() else "not installed")
            return None
        policy = Policy(export.architecture, vocab_size=export.vocab_size, parallel=config.parallel, seed=config.seed,
                        precision=PrecisionConfig(transformer_engine=False), reward_head="train" if export.reward else "none",
                        timeout_minutes=config.cluster.timeout_minutes)
        return parity.check_logits(policy, folder, export.family, config.logits_tolerance)


@hookimpl
def register_stages(register: Register) -> None:
    register("export", ExportStage, config=ExportConfig)
