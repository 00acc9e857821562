"""Scored rollouts as bytes and back, bit for bit, without pickle.

Layout: one line of magic with the checksum of all that follows, 8 bytes of header length, a zlib-compressed JSON header, then the raw arrays:
the completions' tokens, then their log-probs, in the narrowest type that holds every value exactly. Floats in the header survive because Python
writes the shortest text that reads back as the same float64.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r1mega.errors import R1MegaError
from r1mega.types import Completion, EncodedPrompt, Prompt, RolloutGroup, ScoredGroup

UnitPayload = tuple[ScoredGroup, ...]

_MAGIC = b"r1mega-unit-1 "
_DIGEST = 64  # hexadecimal digits


class CorruptUnitError(ValueError):
    """The bytes are not a whole unit; the message says what is wrong with them."""


def encode(groups: Sequence[ScoredGroup]) -> bytes:
    """The unit's bytes. Raises `R1MegaError` for prompt metadata that cannot be stored exactly, naming prompt and type."""
    completions = [completion for scored in groups for completion in scored.group.completions]
    tokens = _narrow([np.asarray(c.tokens, np.int64) for c in completions], np.int64, (np.uint16, np.uint32))
    logprobs = _narrow([np.asarray(c.logprobs, np.float64) for c in completions], np.float64, (np.float32,))
    header = {"groups": [_group_out(scored) for scored in groups], "tokens": tokens.dtype.str, "logprobs": logprobs.dtype.str,
              "count": len(tokens)}
    text = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 1)
    body = b"".join((len(text).to_bytes(8, "little"), text, tokens.tobytes(), logprobs.tobytes()))
    return b"".join((_MAGIC, hashlib.sha256(body).hexdigest().encode(), b"\n", body))


def decode(data: bytes) -> UnitPayload:
    """The groups that `encode` was given. Raises `CorruptUnitError` for anything else than exactly its bytes."""
    start = len(_MAGIC) + _DIGEST + 1
    if len(data) < start + 8 or not data.startswith(_MAGIC):
        raise CorruptUnitError(f"not a rollout unit, or cut off in its first line ({len(data)} bytes)")
    body = memoryview(data)[start:]
    if hashlib.sha256(body).hexdigest().encode() != data[len(_MAGIC) : start - 1] or data[start - 1 : start] != b"\n":
        raise CorruptUnitError(f"the checksum does not match its {len(body)} bytes")
    size = int.from_bytes(body[:8], "little")
    header = json.loads(zlib.decompress(body[8 : 8 + size]))
    count = header["count"]
    tokens = np.frombuffer(body, header["tokens"], count, 8 + size)
    logprobs = np.frombuffer(body, header["logprobs"], count, 8 + size + tokens.nbytes)
    groups, start = [], 0
    for stored in header["groups"]:
        group, start = _group_in(stored, tokens, logprobs, start)
        groups.append(group)
    return tuple(groups)


def _narrow(arrays: Sequence[np.ndarray], widest: type[np.generic], candidates: Sequence[type[np.generic]]) -> np.ndarray:
    """The arrays end to end in the first of `candidates` that gives every bit back, else in `widest`; little-endian."""
    joined = np.concatenate(arrays) if arrays else np.zeros(0, widest)
    for candidate in candidates:
        with np.errstate(over="ignore", invalid="ignore"):
            small = joined.astype(np.dtype(candidate).newbyteorder("<"))
        if small.astype(widest).tobytes() == joined.tobytes():
            return small
    return joined.astype(np.dtype(widest).newbyteorder("<"))


def _group_out(scored: ScoredGroup) -> dict[str, Any]:
    encoded, prompt = scored.group.prompt, scored.group.prompt.prompt
    fields = {field.name: getattr(prompt, field.name) for field in dataclasses.fields(prompt)}
    return {
        "prompt": {**fields, "metadata": _plain(prompt.metadata, f"metadata of prompt '{prompt.id}'")},
        "text": encoded.text, "prompt_tokens": [int(token) for token in encoded.tokens],
        "completions": [[c.id, len(c.tokens), c.text, c.finish_reason, c.weights_version] for c in scored.group.completions],
        "rewards": [float(reward) for reward in scored.rewards],
        "parts": [[name, [float(value) for value in values]] for name, values in scored.parts.items()],
        "valid": [bool(valid) for valid in scored.valid],
    }


def _group_in(stored: Mapping[str, Any], tokens: np.ndarray, logprobs: np.ndarray, start: int) -> tuple[ScoredGroup, int]:
    """The group whose completions begin at `start` of the flat arrays, and where the next one begins."""
    prompt = Prompt(**{**stored["prompt"], "metadata": _rich(stored["prompt"]["metadata"])})
    completions = []
    for name, length, text, reason, version in stored["completions"]:
        part = slice(start, start + length)
        completions.append(Completion(name, tuple(tokens[part].tolist()), tuple(logprobs[part].tolist()), text, reason, version))
        start += length
    group = RolloutGroup(EncodedPrompt(prompt, stored["text"], tuple(stored["prompt_tokens"])), tuple(completions))
    parts = {name: tuple(values) for name, values in stored["parts"]}
    return ScoredGroup(group, tuple(stored["rewards"]), parts, tuple(stored["valid"])), start


def _plain(value: Any, where: str) -> Any:
    """Metadata as JSON that remembers tuples, sets, bytes and mappings with keys that are not text: those become `{"": [kind, content]}`."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):  # a NumPy scalar comes back as the Python number of equal value
        return _plain(value.item(), where)
    if type(value) is list:
        return [_plain(item, where) for item in value]
    if type(value) in (tuple, set, frozenset):
        items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        return {"": [type(value).__name__, [_plain(item, where) for item in items]]}
    if type(value) is bytes:
        return {"": ["bytes", value.hex()]}
    if isinstance(value, Mapping):
        if all(type(key) is str and key for key in value):
            return {key: _plain(item, f"{where}, key '{key}'") for key, item in value.items()}
        return {"": ["mapping", [[_plain(key, where), _plain(item, where)] for key, item in value.items()]]}
    raise R1MegaError(f"{where}: a {type(value).__module__}.{type(value).__qualname__} cannot be banked exactly; "
                      "a task's metadata may hold None, numbers, text, bytes, lists, tuples, sets and mappings of them")


def _rich(value: Any) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, list):
        return [_rich(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "" not in value:
        return {key: _rich(item) for key, item in value.items()}
    kind, content = value[""]
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "mapping":
        return {_rich(key): _rich(item) for key, item in content}
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](_rich(item) for item in content)
