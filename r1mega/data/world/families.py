"""All families of problems by name, easy and hard ones of each domain."""

from __future__ import annotations

from collections.abc import Mapping

from r1mega.data.world.letters import Count, Letter, Reverse
from r1mega.data.world.logic import Order, Truth
from r1mega.data.world.numbers import Add, Countdown, Subtract
from r1mega.data.world.problem import Problem

FAMILIES: Mapping[str, type[Problem]] = {kind.family: kind for kind in (Add, Subtract, Countdown, Order, Truth, Count, Letter, Reverse)}
DOMAINS = tuple(dict.fromkeys(kind.domain for kind in FAMILIES.values()))
