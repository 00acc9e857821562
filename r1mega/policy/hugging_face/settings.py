"""The keys of a released config.json, asked for one by one: what a family does not ask for and nobody knows to be harmless is refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from r1mega.errors import ConfigError
from r1mega.policy.architecture import Rope

# Keys of every family that change no logit of a forward pass over given tokens.
HARMLESS = frozenset((
    "architectures", "model_type", "auto_map", "_name_or_path", "name_or_path", "torch_dtype", "dtype", "transformers_version", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "initializer_range", "attention_dropout", "hidden_dropout", "quantization_config",
    "output_router_logits", "router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "ep_size", "pretraining_tp", "num_labels", "id2label", "label2id",
    "problem_type", "classifier_dropout", "output_attentions", "output_hidden_states", "return_dict", "tokenizer_class", "task_specific_params",
    "chunk_size_feed_forward", "is_encoder_decoder", "_attn_implementation_autoset", "attn_implementation", "use_mamba_kernels", "unsloth_version",
    "unsloth_fixed", "num_logits_to_keep", "is_decoder", "add_cross_attention", "tie_encoder_decoder"))
_REQUIRED: Any = object()


class Settings:
    """One config.json. Questions collect what is wrong; `check` tells all of it at once."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source = values, source
        self.problems: list[str] = []
        self._asked: set[str] = set(HARMLESS)

    def integer(self, name: str, default: Any = _REQUIRED) -> int:
        """A whole number of at least 1; `default` where the key is absent or null."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            return self._wrong(name, value, "a whole number of at least 1", 1)  # type: ignore[no-any-return]
        return value

    def optional(self, name: str) -> int | None:
        """A whole number of at least 1, or None where the key is absent or null."""
        self._asked.add(name)
        return None if self.values.get(name) is None else self.integer(name)

    def count(self, name: str, *, required: bool = False) -> int:
        """A whole number of at least 0; 0 where the key is absent or null, unless it is required."""
        self._asked.add(name)
        absent = self.values.get(name) is None
        return self.integer(name) if self.values.get(name) or (absent and required) else 0

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A number above 0."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            return self._wrong(name, value, "a number above 0", 1.0)  # type: ignore[no-any-return]
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        return value if isinstance(value, bool) else self._wrong(name, value, "true or false", default)  # type: ignore[no-any-return]

    def among(self, name: str, *values: Any) -> None:
        """Refuse every other value; an absent key counts as the first."""
        value = self.values.get(name, values[0])
        self._asked.add(name)
        if not any(value == wanted and isinstance(value, bool) == isinstance(wanted, bool) for wanted in values):
            self.problems.append(f"{name}={value} (only {' or '.join(map(str, values))} can be expressed)")

    def given(self, name: str) -> Any:
        """A value as it is; None where the key is absent."""
        self._asked.add(name)
        return self.values.get(name)

    def listed(self, name: str) -> list[Any]:
        """A list; empty where the key is absent or null."""
        value = self._value(name, [])
        return value if isinstance(value, list) else self._wrong(name, value, "a list", [])  # type: ignore[no-any-return]

    def mapping(self, name: str) -> dict[str, Any]:
        """An object, as a copy; empty where the key is absent or null."""
        value = self._value(name, {})
        return dict(value) if isinstance(value, dict) else self._wrong(name, value, "an object", {})  # type: ignore[no-any-return]

    def ignore(self, *names: str) -> None:
        """Keys that change nothing in this family, whatever their values."""
        self._asked.update(names)

    def refuse(self, what: str) -> None:
        self.problems.append(what)

    def check(self, allowed: Collection[str] = ()) -> None:
        """Raise `ConfigError` with everything that was wrong, and the keys nobody asked for whose value is neither null nor false."""
        unknown = [f"{name}={value} (unknown; it may change what the model computes)" for name, value in self.values.items()
                   if name not in self._asked and name not in allowed and value is not None and value is not False]
        if found := [*self.problems, *unknown]:
            advice = ". A key that changes nothing can be named in model.ignore" if unknown else ""
            raise ConfigError(f"{self.source} cannot be expressed exactly: {'; '.join(found)}{advice}")

    def _value(self, name: str, default: Any) -> Any:
        self._asked.add(name)
        value = self.values.get(name)
        if value is None and default is not _REQUIRED:
            return default
        return value

    def _wrong(self, name: str, value: Any, expected: str, instead: Any) -> Any:
        self.problems.append(f"{name} is missing" if name not in self.values else f"{name}={value!r} (expected {expected})")
        return instead


def read_common(settings: Settings) -> dict[str, Any]:
    """The fields of `Architecture` that all families spell alike."""
    settings.among("hidden_act", "silu")
    return {"num_layers": settings.integer("num_hidden_layers"), "hidden_size": settings.integer("hidden_size"),
            "ffn_hidden_size": settings.integer("intermediate_size"), "num_attention_heads": settings.integer("num_attention_heads"),
            "max_position_embeddings": settings.integer("max_position_embeddings"), "layernorm_epsilon": settings.number("rms_norm_eps", 1e-6),
            "tied_embeddings": settings.boolean("tie_word_embeddings", False), "init_method_std": settings.number("initializer_range", 0.02)}


def read_grouped_query(settings: Settings) -> dict[str, Any]:
    """Those of attention whose heads share keys and values, over the whole context."""
    heads, hidden = settings.integer("num_attention_heads"), settings.integer("hidden_size")
    settings.among("use_sliding_window", False, None)
    if "use_sliding_window" not in settings.values:
        settings.among("sliding_window", None)
    settings.ignore("sliding_window", "max_window_layers")  # read with use_sliding_window alone
    if other := sorted({str(kind) for kind in settings.listed("layer_types") if kind != "full_attention"}):
        settings.refuse(f"layer_types with {', '.join(other)} (only full_attention can be expressed)")
    groups = settings.integer("num_key_value_heads", heads)
    if heads % groups:
        settings.refuse(f"num_key_value_heads={groups}, which does not divide num_attention_heads={heads}")
    if settings.given("head_dim") is None and hidden % heads:
        settings.refuse(f"num_attention_heads={heads}, which does not divide hidden_size={hidden}, without head_dim")
    return {"num_query_groups": groups, "kv_channels": settings.integer("head_dim", max(1, hidden // heads))}


def read_rope(settings: Settings, *, llama3: bool = False, yarn: bool = False) -> Rope:
    """The rotary embedding: `rope_theta` and `rope_scaling` of transformers 4, `rope_parameters` of 5."""
    newer, older = settings.mapping("rope_parameters"), settings.mapping("rope_scaling")
    scaling = older or dict(newer)  # where both are there, transformers goes by the older
    stated = [theta for theta in (scaling.pop("rope_theta", None), newer.get("rope_theta"), settings.given("rope_theta")) if theta is not None]
    theta = stated[0] if stated else None
    base = 10000.0 if theta is None else theta
    if isinstance(base, bool) or not isinstance(base, int | float) or not base > 0:
        settings.refuse(f"rope_theta={base!r} (expected a number above 0)")
        return Rope()
    kind = scaling.pop("rope_type", None)
    kind = scaling.pop("type", None) or "default" if kind is None else kind
    scaling.pop("type", None)
    settings.among("partial_rotary_factor", 1.0, None)
    if scaling.pop("partial_rotary_factor", 1.0) != 1.0:
        settings.refuse("partial_rotary_factor other than 1")
    if kind == "default":
        _nothing_left(settings, scaling)
        return Rope(rotary_base=float(base))
    if kind == "llama3" and llama3:
        return _llama3(settings, scaling, float(base))
    if kind == "yarn" and yarn:
        return _yarn(settings, scaling, float(base))
    known = ["default", *(["llama3"] if llama3 else []), *(["yarn"] if yarn else [])]
    settings.refuse(f"rope type {kind!r} (this family can have {' or '.join(known)})")
    return Rope()


def _llama3(settings: Settings, scaling: dict[str, Any], base: float) -> Rope:
    fixed = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    factor = scaling.pop("factor", None)
    for name, value in fixed.items():
        if (found := scaling.pop(name, None)) != value:
            settings.refuse(f"rope {name}={found} (Megatron-Core's Llama 3 scaling has {value})")
    _nothing_left(settings, scaling)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        settings.refuse(f"rope factor={factor!r} (expected a number above 0)")
        return Rope()
    return Rope(rotary_base=base, llama3_scaling_factor=float(factor))


def _yarn(settings: Settings, scaling: dict[str, Any], base: float) -> Rope:
    values = {name: scaling.pop(name, default) for name, default in (
        ("factor", None), ("original_max_position_embeddings", None), ("beta_fast", 32), ("beta_slow", 1), ("mscale", None), ("mscale_all_dim", None))}
    if scaling.pop("truncate", True) is not True:
        settings.refuse("rope truncate=false (Megatron-Core rounds YaRN's range of dimensions)")
    _nothing_left(settings, scaling)
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            settings.refuse(f"rope {name}={value!r} (expected a number above 0)")
            return Rope()
    return Rope(rope_type="yarn", rotary_base=base, rotary_scaling_factor=float(values["factor"]), beta_fast=float(values["beta_fast"]),
                original_max_position_embeddings=int(values["original_max_position_embeddings"]), beta_slow=float(values["beta_slow"]),
                mscale=float(values["mscale"]), mscale_all_dim=float(values["mscale_all_dim"]))


def _nothing_left(settings: Settings, scaling: Mapping[str, Any]) -> None:
    for name, value in scaling.items():
        if value is not None:
            settings.refuse(f"rope {name}={value} (unknown)")
