"""A reward model at work: sequences in, one number each out, through a policy that carries the scalar head (R1_RECIPE section 2.6)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from r1mega.config import TemplateConfig
from r1mega.data.judged import SCOPES, Kind, judged_tokens
from r1mega.errors import UserError
from r1mega.recipe import files
from r1mega.rollout.passes import over_sequences
from r1mega.types import Prompt, TrainSequence

if TYPE_CHECKING:
    import torch

    from r1mega.hookspecs import Tokenizer
    from r1mega.policy.policy import Policy
    from r1mega.types import MicroBatch

CARD = "reward.json"


@dataclass(frozen=True)
class RewardCard:
    """`reward.json` of a `RewardModel` artifact: what it judges, in which words it was asked, and where its scores lie."""

    kind: Kind
    prompt: str  # the prompt template it was trained with
    turn: str  # and that of earlier turns
    mean: float  # of its values over the held-out responses
    std: float
    system: str = ""  # and that of a system message

    def save(self, folder: Path) -> None:
        """Complete a sealed artifact that is being written (`export_artifact`'s `complete`): the card, and its part in the content digest."""
        files.write_json(folder / CARD, vars(self))
        whole = (folder / "content.sha256").read_bytes() + (folder / CARD).read_bytes()
        files.write_text(folder / "content.sha256", hashlib.sha256(whole).hexdigest() + "\n")

    @classmethod
    def load(cls, folder: Path) -> RewardCard:
        """Raises `UserError` for a folder that holds no reward model."""
        if not (folder / CARD).is_file():
            raise UserError(f"{folder} is no reward model: it has no {CARD}; connect the output of a reward_model stage")
        return cls(**files.read_json(folder / CARD))

    def score(self, value: float) -> float:
        """The value as a reward between 0 and 1, the held-out mean at 0.5. The paper does not say how it scales rewards of models against those of
        rules; ours is a standardised logistic, so that one term cannot outweigh the others by its scale."""
        return float(1 / (1 + np.exp(-(value - self.mean) / (self.std or 1.0))))


class RewardModelScorer:
    """One reward model, scoring with the ranks and the memory of the policy that it scores for."""

    def __init__(self, folder: Path, *, policy: Policy, tokenizer: Tokenizer, micro_batch_tokens: int) -> None:
        """Load the artifact in `folder` beside the policy's own weights. A collective."""
        from r1mega.policy.weights import WeightSets

        self.card = RewardCard.load(folder)
        self._policy, self._tokenizer, self._bin = policy, tokenizer, micro_batch_tokens
        self._template = TemplateConfig(prompt=self.card.prompt, turn=self.card.turn, system=self.card.system)
        self._sets = WeightSets(policy)  # of its own: a checkpoint of the policy need not hold what the artifact holds
        self._sets.load_artifact(self.card.kind, folder)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """A reward in [0, 1] for each of this replica's responses. A collective: every replica calls it, also with nothing to score."""
        with self._sets.use(self.card.kind):
            return [self.card.score(value) for value in last_values(self._policy, self._tokens(prompts, responses), self._bin)]

    def lengths(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[int]:
        """How many tokens `score` reads of each."""
        return [len(row) for row in self._tokens(prompts, responses)]

    def _tokens(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[np.ndarray]:
        return [judged_tokens(prompt, response, SCOPES[self.card.kind], self._template, self._tokenizer)
                for prompt, response in zip(prompts, responses, strict=True)]


def last_values(policy: Policy, tokens: Sequence[np.ndarray], micro_batch_tokens: int) -> list[float]:
    """The scalar head's value at the last token of each of this replica's sequences (int64 [L]). A collective over all replicas."""
    def at_ends(values: torch.Tensor, batch: MicroBatch) -> list[float]:
        found: list[float] = values.numpy()[np.cumsum(batch.lengths)[: batch.num_sequences] - 1].tolist()
        return found

    sequences = [TrainSequence(str(index), row, np.zeros(len(row), np.float32)) for index, row in enumerate(tokens)]
    return over_sequences(policy, sequences, micro_batch_tokens, policy.values, at_ends)
