"""Whether a reply follows instructions that a program can check (IFEval)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from r1mega import hookimpl
from r1mega.data.chat import split_response
from r1mega.hookspecs import Register
from r1mega.rewards.instructions import loosened, prepare
from r1mega.types import RewardSample, Score


@dataclass(frozen=True)
class InstructionsConfig:
    """Which of IFEval's four measures."""

    variant: Literal["strict", "loose"] = "strict"  # loose: also without the first line, the last line, asterisks
    level: Literal["prompt", "instruction"] = "prompt"  # prompt: 1 if all are followed; instruction: the share of those followed

    def __post_init__(self) -> None:
        if self.variant not in ("strict", "loose") or self.level not in ("prompt", "instruction"):
            raise ValueError(f"variant must be strict or loose and level prompt or instruction, got {self}")


class Instructions:
    """1 if the reply, without its reasoning, follows every instruction of `metadata["instruction_id_list"]` and `["kwargs"]`, otherwise 0.

    With `level=instruction`, the share of those it follows.
    """

    version = "1"

    def __init__(self, config: InstructionsConfig) -> None:
        self._config = config

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: RewardSample) -> Score:
        names, settings = sample.metadata.get("instruction_id_list"), sample.metadata.get("kwargs")
        if not names or settings is None:
            raise ValueError("the sample's metadata has no 'instruction_id_list' and 'kwargs'; the reward 'instructions' scores problems of the task "
                             f"'ifeval' (prompt {sample.prompt[:80]!r})")
        reply = split_response(sample.completion, starts_in_reasoning=sample.starts_in_reasoning)[1]
        variants = list(loosened(reply)) if self._config.variant == "loose" else [reply]
        followed = [any(map(prepare(name, one), variants)) for name, one in zip(names, settings, strict=True)]
        missed = [name for name, ok in zip(names, followed, strict=True) if not ok]
        explanation = f"not followed: {', '.join(missed)}" if missed else ""
        return Score(float(not missed) if self._config.level == "prompt" else sum(followed) / len(followed), explanation=explanation)


@hookimpl
def register_rewards(register: Register) -> None:
    register("instructions", Instructions, config=InstructionsConfig)
