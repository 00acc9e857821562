"""A reward that does what the completion says, however bad; installed by the pool's tests as an outside distribution."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import r1mega
from r1mega.types import RewardSample, Score


def _nan() -> Score:
    score = Score(0.0)
    object.__setattr__(score, "value", float("nan"))  # past the check in its constructor
    return score


def _print() -> Score:
    print("noise " * 1000, flush=True)
    os.write(1, b"\0\xff noise on the descriptor itself\n")
    subprocess.run(["echo", "noise of a child"], check=True)
    assert sys.stdin.read() == ""
    return Score(1.0)


def _child() -> Score:
    child = subprocess.Popen(["sleep", "1000"])
    return Score(float(child.pid))


ACTIONS: dict[str, Any] = {
    "hang": lambda: time.sleep(1000),
    "hang in C": lambda: re.match(r"(a+)+$", "a" * 60 + "b"),  # never lets go of the interpreter lock
    "exit": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "sys.exit": lambda: sys.exit(5),
    "raise": lambda: 1 / 0,
    "nan": _nan,
    "infinite": lambda: Score(float("inf")),
    "type": lambda: 1.0,
    "memory": lambda: Score(float(len(bytearray(8 << 30)))),
    "print": _print,
    "child": _child,
    "child, then hang": lambda: (_child(), time.sleep(1000)),
    "torch": lambda: Score(float("torch" in sys.modules)),
    "unicode": lambda: Score(1.0, explanation="日本語 \ud800 🙂"),
}


class Hostile:
    """Does what the completion says; else the completion's length."""

    version = "1"

    def score(self, samples: Sequence[RewardSample]) -> Sequence[Score]:
        scores = [ACTIONS[s.completion]() if s.completion in ACTIONS else Score(float(len(s.completion))) for s in samples]
        return scores[1:] if any(s.completion == "count" for s in samples) else scores


@dataclass(frozen=True)
class UnbuildableConfig:
    how: str = "raise"


def unbuildable(config: UnbuildableConfig) -> Any:
    """Cannot be made."""
    return ACTIONS[config.how]()


@r1mega.hookimpl
def register_rewards(register: Any) -> None:
    register("hostile", Hostile)
    register("unbuildable", unbuildable, config=UnbuildableConfig)
