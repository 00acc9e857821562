"""Dr. GRPO: GRPO without its two biases, the division by length and by standard deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from r1mega import hookimpl
from r1mega.hookspecs import Register

from .grpo import GRPO, GRPOConfig


@dataclass(frozen=True)
class DrGRPOConfig(GRPOConfig):
    """GRPO's knobs with Dr.GRPO's values (arXiv 2503.20783)."""

    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    kl_coefficient: float = 0.0
    aggregation: Literal["sequence", "token", "dr_grpo"] = "dr_grpo"
    normalize_std: bool = False


class DrGRPO(GRPO):
    """Group Relative Policy Optimization Done Right (arXiv 2503.20783, section 3.2)."""

    version: ClassVar[str] = "1"


@hookimpl
def register_algorithms(register: Register) -> None:
    register("dr_grpo", DrGRPO, config=DrGRPOConfig)
