"""GSPO: one importance ratio per sequence, normalised by its length, clipped as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from r1mega import hookimpl
from r1mega.algo.losses import RatioLevel
from r1mega.hookspecs import Register

from .grpo import GRPO, GRPOConfig


@dataclass(frozen=True)
class GSPOConfig(GRPOConfig):
    """GRPO's knobs with GSPO's values (arXiv 2507.18071)."""

    clip_ratio_low: float = 3e-4
    clip_ratio_high: float = 4e-4
    kl_coefficient: float = 0.0


class GSPO(GRPO):
    """Group Sequence Policy Optimization (arXiv 2507.18071, Eq. 5-7). Needs each sequence whole on one rank: no context parallelism."""

    version: ClassVar[str] = "1"
    ratio_level: ClassVar[RatioLevel] = "sequence"


@hookimpl
def register_algorithms(register: Register) -> None:
    register("gspo", GSPO, config=GSPOConfig)
