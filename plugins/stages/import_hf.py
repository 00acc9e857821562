"""Take a released model: a Hugging Face folder as a checkpoint artifact, and the proof that it is the same model."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from r1mega import hookimpl
from r1mega.config import PluginChoice, PrecisionConfig, StageCommon
from r1mega.errors import ConfigError, DataError
from r1mega.hookspecs import Register
from r1mega.recipe.context import StageContext

from ._setup import gather_of, make, seal_checkpoint

if TYPE_CHECKING:
    from r1mega.hookspecs import Tokenizer
    from r1mega.policy.hugging_face.config_json import Published
    from r1mega.policy.policy import Policy

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportHFConfig(StageCommon):
    """Where it lies, and how the import is checked. Every number of the artifact is compared with the folder's in any case."""

    required_paths: ClassVar[tuple[str, ...]] = ("path",)
    path: str = ""  # the folder: config.json, safetensors, tokenizer files; no default
    check_logits: Literal["auto", "always", "never"] = "auto"  # against transformers, in fp32; auto: where it is installed and the model small enough
    check_logits_max_parameters: int = 500_000_000  # what small enough is
    logits_tolerance: float = 1e-4  # nats, of log-probabilities and entropies

    def __post_init__(self) -> None:
        if self.logits_tolerance <= 0:
            raise ConfigError(f"logits_tolerance must be above 0, got {self.logits_tolerance}")


class ImportHF:
    """Brings in a Hugging Face folder: each rank reads its slices, all bytes are compared, logits too where transformers can."""

    version: ClassVar[str] = "1"
    inputs: ClassVar[Mapping[str, str]] = {}
    outputs: ClassVar[Mapping[str, str]] = {"checkpoint": "Checkpoint"}
    brings_tokenizer: ClassVar[bool] = True  # the folder has one

    def __init__(self, config: ImportHFConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Returns the counts and the largest difference between transformers' logits and ours (None: not compared).

        Raises `ConfigError` for a model that its family cannot express or that is not the recipe's, `DataError` for files that are damaged or do not
        belong together.
        """
        from r1mega.policy import artifact
        from r1mega.policy.hugging_face.config_json import read_published
        from r1mega.policy.hugging_face.imported import check_imported
        from r1mega.policy.hugging_face.load import load_published

        config = self.config
        assert isinstance(config.model, PluginChoice)
        folder, architecture = Path(config.path), make("models", config.model)
        published = read_published(folder, ignore=getattr(config.model.config, "ignore", ()))
        if published.is_reward_model:
            raise ConfigError(f"stages.{context.name}.path: {published.path} is of a reward model (a scalar head in place of the vocabulary's); this stage "
                              "takes language models")
        tokenizer = make("tokenizers", config.tokenizer, folder=folder)
        check_same_model(published, architecture, tokenizer)
        difference = self._check_logits(published, architecture, gather_of(config, context))
        policy = self._policy(published, architecture, config.precision)
        load_published(policy, folder, published.family)
        counts: dict[str, Any] = {}

        def check(written: Path) -> None:
            counts.update(check_imported(policy.ranks, written, folder, published.family, architecture, published.vocab_size))

        artifact.export_artifact(policy, context.output("checkpoint"), complete=lambda written: seal_checkpoint(written, tokenizer), check=check,
                                 before_rename=context.check_epoch)
        return {**counts, "logits_difference": difference, "from": str(folder)}

    def _policy(self, published: Published, architecture: Any, precision: PrecisionConfig) -> Policy:
        from r1mega.policy.policy import Policy

        config = self.config
        return Policy(architecture, vocab_size=published.vocab_size, parallel=config.parallel, precision=precision, seed=config.seed,
                      timeout_minutes=config.cluster.timeout_minutes, draw=False)

    def _check_logits(self, published: Published, architecture: Any, gather: Callable[[Any], list[Any]]) -> float | None:
        """On a model of its own in fp32. A collective."""
        from r1mega.policy.hugging_face import parity

        config = self.config
        reason = next((told for told in gather(self._reason(published)) if told), "")  # nodes may differ in what is installed
        if reason:
            if config.check_logits == "always":
                raise ConfigError(f"check_logits=always: the logits of {published.path.parent} cannot be compared with transformers': {reason}; "
                                  "leave the check out (check_logits=never, no --check)")
            _log.info("logits are not compared with transformers': %s", reason)
            return None
        policy = self._policy(published, architecture, PrecisionConfig(transformer_engine=False))
        return parity.check_logits(policy, published.path.parent, published.family, config.logits_tolerance)

    def _reason(self, published: Published) -> str:
        """Why the logits are not compared; "" where they are."""
        from r1mega.policy.hugging_face import parity
        from r1mega.policy.hugging_face.published import PublishedWeights

        config = self.config
        if config.check_logits == "never":
            return "check_logits=never"
        if not parity.transformers_installed():
            return "transformers is not installed"
        if "quantization_config" in published.settings:
            return "its weights are quantised"
        if config.check_logits == "auto":
            weights = PublishedWeights(published.path.parent)
            parameters = sum(math.prod(weights.shape(name)) for name in weights.names)
            if parameters > config.check_logits_max_parameters:
                return f"it has {parameters} parameters"
        return ""


def check_same_model(published: Published, architecture: Any, tokenizer: Tokenizer) -> None:
    """Raise `UserError` naming where a released model differs from the recipe's, `DataError` for a tokenizer with another vocabulary."""
    from r1mega.policy import artifact

    if tokenizer.vocab_size != published.vocab_size:
        raise DataError(f"{published.path}: vocab_size={published.vocab_size}, but the tokenizer has {tokenizer.vocab_size} tokens: they do not belong "
                        "together")
    about = {"vocab_size": published.vocab_size, "architecture": dataclasses.asdict(published.architecture)}
    artifact.check_architecture(about, architecture, tokenizer.vocab_size, published.path.parent, mtp_optional=architecture.mtp_num_layers == 0)


@hookimpl
def register_stages(register: Register) -> None:
    register("import_hf", ImportHF, config=ImportHFConfig)
