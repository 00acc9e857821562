"""Function calls as data: read from a reply, read from a reference, compared by what they mean."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1mega.rewards.json_schema import json_in, parse_json, same_json

OMITTED = ""  # among a reference's allowed values: the argument may be left out


class CallsError(ValueError):
    """Calls that are not in a form this module reads."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call. In a reference `allowed` lists, for each argument, the values that count as right; in a reply there is one."""

    name: str
    allowed: Mapping[str, Sequence[Any]]


def expected_calls(calls: Sequence[Any]) -> list[Call]:
    """A reference: a list of {"name", "arguments": {name: value}}, or of {function: {argument: [allowed values]}} as the Berkeley leaderboard has it
    (an allowed "" means that the argument may be left out). Raises `CallsError`.
    """
    found = []
    for call in calls:
        if isinstance(call, Mapping) and len(call) == 1 and all(isinstance(arguments, Mapping) for arguments in call.values()):
            name, arguments = next(iter(call.items()))
            if not all(isinstance(values, list) and values for values in arguments.values()):
                raise CallsError(f"the arguments of '{name}' must each be a list of allowed values")
            found.append(Call(str(name), {key: list(values) for key, values in arguments.items()}))
        else:
            found.append(_plain(call))
    return found


def calls_in(reply: str) -> list[Call]:
    """The calls of a reply: JSON (in a fence or alone), one call or an array of them; arguments may be JSON text. Raises `CallsError`."""
    try:
        value = parse_json(json_in(reply))
    except ValueError as error:
        raise CallsError(f"the reply is not JSON: {error}") from error
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    return [_plain(call) for call in (value if isinstance(value, list) else [value])]


def _plain(call: Any) -> Call:
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        call = call["function"]  # OpenAI's form
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise CallsError('a call must be {"name": ..., "arguments": {...}}')
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments)
        except ValueError as error:
            raise CallsError(f"the arguments of '{call['name']}' are not JSON: {error}") from error
    if not isinstance(arguments, Mapping):
        raise CallsError(f"the arguments of '{call['name']}' must be an object")
    return Call(call["name"], {key: [value] for key, value in arguments.items()})


def calls_fault(given: Sequence[Call], expected: Sequence[Call], *, ordered: bool = False) -> str:
    """Why the given calls are not the expected ones; empty when they are. Every expected call answers to another given one; their order counts only
    when `ordered`."""
    if len(given) != len(expected):
        return f"{len(given)} calls instead of {len(expected)}"
    if ordered:
        wrong = [call.name for call, wanted in zip(given, expected, strict=True) if not _same(call, wanted)]
        return f"the call of '{wrong[0]}' is not the expected one" if wrong else ""
    partner: dict[int, int] = {}  # given -> expected
    for place, wanted in enumerate(expected):
        if not _match(place, given, expected, partner, set()):
            return f"no call answers to {wanted.name}({json.dumps(dict(wanted.allowed), ensure_ascii=False)[:200]})"
    return ""


def _match(wanted: int, given: Sequence[Call], expected: Sequence[Call], partner: dict[int, int], tried: set[int]) -> bool:
    """Find the expected call a partner, moving others where need be (augmenting paths): with allowed values a greedy choice can block a later one."""
    for place, call in enumerate(given):
        if place not in tried and _same(call, expected[wanted]):
            tried.add(place)
            if place not in partner or _match(partner[place], given, expected, partner, tried):
                partner[place] = wanted
                return True
    return False


def _same(call: Call, wanted: Call) -> bool:
    if call.name != wanted.name or not call.allowed.keys() <= wanted.allowed.keys():
        return False
    return all(any(_same_value(call.allowed[key][0], value) for value in values) if key in call.allowed else OMITTED in values
               for key, values in wanted.allowed.items())


def _same_value(given: Any, wanted: Any) -> bool:
    """As JSON; texts without regard to case and outer spaces."""
    if isinstance(given, str) and isinstance(wanted, str):
        return given.strip().casefold() == wanted.strip().casefold()
    return same_json(given, wanted)
