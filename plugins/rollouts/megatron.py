"""Generation with the training weights themselves: no second copy, no transfer, any layout, CPU or GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r1mega import hookimpl
from r1mega.hookspecs import Register, Tokenizer
from r1mega.types import Completion, GenerationRequest

if TYPE_CHECKING:
    from r1mega.policy.policy import Policy


@dataclass(frozen=True)
class MegatronRolloutConfig:
    """Sampling of the rollout and the size of the in-process engine."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 32768
    stop: tuple[str, ...] = ()
    max_slots: int = 256  # sequences generated at once on each replica
    refill_fraction: float = 0.0625  # free slots are refilled once they are this share of all


class MegatronRollout:
    """In-process generation on Megatron-Core with a slot-based key/value cache."""

    version = "1"

    def __init__(self, config: MegatronRolloutConfig, *, policy: Policy, tokenizer: Tokenizer) -> None:
        from r1mega.policy.generate import Engine

        self._engine = Engine(policy, max_slots=config.max_slots, refill_fraction=config.refill_fraction)
        self._tokenizer = tokenizer

    def generate(self, requests: Sequence[GenerationRequest], on_finish: Callable[[Completion], Any]) -> None:
        """See `hookspecs.Generator`."""
        self._engine.generate(requests, self._tokenizer.decode, on_finish)


@hookimpl
def register_rollouts(register: Register) -> None:
    register("megatron", MegatronRollout, config=MegatronRolloutConfig)
