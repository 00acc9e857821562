"""The data that flows: `Prompt -> RolloutGroup -> ScoredGroup -> TrainSequence -> MicroBatch -> metrics`.

Dimension letters, used in every comment below and across the code base:

    G  samples of one prompt (the group)          P  tokens of a prompt
    C  tokens of one completion                   L  P + C, tokens of one training sequence
    T  tokens of one packed micro-batch           N  sequences in one packed micro-batch
    V  vocabulary                                 B  rows (slots) being generated

Everything is frozen; lengths are checked on construction. Token ids and log-probs are plain Python or numpy data here: tensors
appear only in `MicroBatch`, the last step before the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

FinishReason = Literal["stop", "length"]


def _same_length(what: str, **fields: Sequence[Any] | np.ndarray) -> None:
    lengths = {name: len(value) for name, value in fields.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{what}: lengths differ: {lengths}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem of a task, as the task states it (no template yet).

    `id` is the problem's identity: two phrasings of one problem (3+5, 5+3) share it, and a split by id cannot leak.
    """

    id: str
    question: str
    answer: str | None = None
    domain: str = "math"
    language: str = "en"
    task: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt rendered through the template and tokenized."""

    prompt: Prompt
    text: str
    tokens: tuple[int, ...]  # [P]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a completion is drawn. Log-probs are those of the temperature-scaled distribution before top-p truncation."""

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    stop: tuple[str, ...] = ()  # the completion ends with the first of these, included in the text
    stop_token_ids: tuple[int, ...] = ()  # usually (eos,); included in the tokens, not in the text

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"impossible sampling parameters: {self}")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion to make. `seed` (64 bits) fixes its randomness, whoever makes it and whenever."""

    id: str  # "<prompt id>#<sample index>"
    prompt_tokens: tuple[int, ...]  # [P]
    sampling: SamplingParams
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished completion. With finish reason "stop" the last token is the stop token, with "length" it is any."""

    id: str
    tokens: tuple[int, ...]  # [C]
    logprobs: tuple[float, ...]  # [C], the generator's, under the sampling temperature
    text: str
    finish_reason: FinishReason
    weights_version: int

    def __post_init__(self) -> None:
        _same_length("Completion", tokens=self.tokens, logprobs=self.logprobs)


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """All samples of one prompt, ordered by sample index."""

    prompt: EncodedPrompt
    completions: tuple[Completion, ...]  # [G]


@dataclass(frozen=True, slots=True)
class RewardSample:
    """What a reward sees of one completion."""

    prompt: str  # the question, without the template
    completion: str
    answer: str | None = None
    domain: str = "math"
    language: str = "en"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    starts_in_reasoning: bool = False  # the template's prompt has already opened <think>


@dataclass(frozen=True, slots=True)
class Score:
    """A reward's verdict on one sample: the value, its named parts, and why, for a person to read."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    explanation: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a score must be finite, got {self.value}")


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with its rewards. A sample whose reward failed is masked (`valid` false), never scored 0."""

    group: RolloutGroup
    rewards: tuple[float, ...]  # [G], the weighted sum of all reward terms
    parts: Mapping[str, tuple[float, ...]]  # reward name -> [G], unweighted; a term that does not apply to the prompt is absent
    valid: tuple[bool, ...]  # [G]

    def __post_init__(self) -> None:
        _same_length("ScoredGroup", completions=self.group.completions, rewards=self.rewards, valid=self.valid, **self.parts)


@dataclass(frozen=True, slots=True)
class TrainSequence:
    """One sequence to train on. Arrays cover the whole sequence; entry t belongs to token t (not to its prediction).

    The loss at token t has weight `weights[t]`; prompt tokens and masked samples have weight 0. The sum of losses over a step is divided
    once by the step's global denominator (see `algo.losses`).
    """

    id: str
    tokens: np.ndarray  # int64 [L]
    weights: np.ndarray  # float32 [L]
    advantages: np.ndarray | None = None  # float32 [L]
    behaviour_logprobs: np.ndarray | None = None  # float32 [L], the generator's; 0 at prompt tokens
    old_logprobs: np.ndarray | None = None  # float32 [L], the trainer's at the start of the rollout
    ref_logprobs: np.ndarray | None = None  # float32 [L], the reference policy's

    def __post_init__(self) -> None:
        given = {name: value for name in ("advantages", "behaviour_logprobs", "old_logprobs", "ref_logprobs")
                 if (value := getattr(self, name)) is not None}
        _same_length("TrainSequence", tokens=self.tokens, weights=self.weights, **given)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """N sequences packed end to end into one row of T tokens, padded at the end to the layout's multiple.

    Position t predicts `labels[t]`, the next token of the same sequence; at a sequence's last token and in padding `weights` is 0.
    All per-token fields are aligned to the prediction: entry t belongs to `labels[t]`.
    """

    tokens: torch.Tensor  # int64 [T]
    labels: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T], restart at 0 in every sequence
    lengths: tuple[int, ...]  # [N + 1 if padded], sums to T; a padding tail is a sequence of its own with weight 0
    weights: torch.Tensor  # float32 [T]
    sequence_index: torch.Tensor  # int64 [T], which of the N sequences; padding has index N
    num_sequences: int  # N
    advantages: torch.Tensor | None = None  # float32 [T]
    behaviour_logprobs: torch.Tensor | None = None  # float32 [T]
    old_logprobs: torch.Tensor | None = None  # float32 [T]
    ref_logprobs: torch.Tensor | None = None  # float32 [T]
