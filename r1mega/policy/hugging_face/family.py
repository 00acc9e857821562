"""What a model family is to the Hugging Face libraries, as a model plugin declares it: `factory.hugging_face = (FAMILY, ...)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from r1mega.errors import ConfigError
from r1mega.policy.architecture import Architecture
from r1mega.policy.hugging_face.settings import Settings

Rule = Literal["whole", "stacked", "qkv", "vocabulary"]


@dataclass(frozen=True)
class Row:
    """One line of a table: a tensor of ours and the tensors of theirs that hold the same numbers.

    Rules: `whole` is one to one. `stacked`: theirs stand under each other in ours, equally many rows each (gate, up). `qkv`: each query group's queries,
    its key and its value stand together in ours. `vocabulary`: ours has rows of padding at its end.
    """

    ours: tuple[str, ...]  # spellings, one of which a checkpoint has: Transformer Engine's and local layers name the norms differently
    theirs: tuple[str, ...]  # with {expert} where each expert is a tensor of its own
    rule: Rule = "whole"
    copies: tuple[str, ...] = ()  # other names of the (only) tensor of theirs: written too, not read
    fp32: bool = False  # stays in float32 whatever the format of the weights

    @property
    def per_expert(self) -> bool:
        return "{expert}" in self.theirs[0]


@dataclass(frozen=True)
class Family:
    """A family of models: one class of the transformers library.

    Names in `layer` rows lack the layer's prefix on both sides, those in `prediction` rows (of a multi-token-prediction layer) likewise.
    """

    name: str
    model_type: str  # in config.json
    causal_class: str  # the transformers class with a vocabulary head
    layer: Callable[[Architecture, int], Sequence[Row]]  # the rows of layer i; i >= num_layers: the block of a multi-token-prediction layer
    settings: Callable[[Architecture], dict[str, Any]]  # config.json's keys beside those that all families have
    refusals: Callable[[Architecture], Sequence[str]]  # what of an architecture the family cannot express, each a phrase with the field
    read: Callable[[Settings], Architecture]  # config.json -> what it describes; what cannot be expressed is refused through `Settings`
    prediction: Sequence[Row] = ()  # what a multi-token-prediction layer has around its block; empty: the family has no such layers

    @property
    def reward_class(self) -> str:
        """The transformers class with a scalar head. Raises `ConfigError` where the family has none."""
        stem = self.causal_class.removesuffix("ForCausalLM")
        if stem == self.causal_class:
            raise ConfigError(f"{self.name} has no class for reward models beside {self.causal_class}: a model with a scalar head cannot be exported as one")
        return f"{stem}ForSequenceClassification"


def choose_family(families: Sequence[Family], architecture: Architecture) -> Family:
    """The first family that expresses the architecture. Raises `ConfigError` saying for each what it cannot express."""
    reasons = {}
    for family in families:
        found = list(family.refusals(architecture))
        if architecture.mtp_num_layers and not family.prediction:
            found.append(f"mtp_num_layers={architecture.mtp_num_layers}")
        if not found:
            return family
        reasons[family.name] = found
    if not reasons:
        raise ConfigError("this model plugin declares no Hugging Face family (attribute `hugging_face` of the registered factory)")
    told = "; ".join(f"{name}: {', '.join(found)}" for name, found in reasons.items())
    raise ConfigError(f"no Hugging Face family of this model can express it exactly. What each cannot: {told}")
