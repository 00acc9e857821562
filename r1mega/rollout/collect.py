"""From prompts to scored groups: requests with their own randomness, generation, rewards while generation still runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from r1mega.errors import RewardError
from r1mega.hookspecs import Generator
from r1mega.rewards.build import opens_reasoning
from r1mega.rewards.pool import RewardPool, Verdict
from r1mega.types import Completion, EncodedPrompt, GenerationRequest, Prompt, RewardSample, RolloutGroup, SamplingParams, ScoredGroup

TermsOf = Callable[[Prompt], Collection[str]]  # the reward terms that count for a prompt


class Replica(Protocol):
    """What this module needs of `policy.ranks.Ranks`: which rank scores, and how the others learn the verdicts."""

    @property
    def is_lead(self) -> bool: ...

    def from_lead(self, value: Any) -> Any: ...


@dataclass(frozen=True)
class WorkItem:
    """One prompt to make a group for. `cursor` is its place in the run's stream of prompts and makes its samples' ids unique."""

    cursor: int
    prompt: EncodedPrompt

    def sample_id(self, index: int) -> str:
        return f"{self.prompt.prompt.id}@{self.cursor}#{index}"


def sample_seed(seed: int, step: int, sample_id: str) -> int:
    """64 bits that fix a sample's randomness, whoever makes it and whenever."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{sample_id}".encode(), digest_size=8).digest(), "big")


def make_requests(items: Sequence[WorkItem], group_size: int, sampling: SamplingParams, seed: int, step: int) -> list[GenerationRequest]:
    """`group_size` requests for each item, groups together and in order."""
    return [GenerationRequest(item.sample_id(k), item.prompt.tokens, sampling, sample_seed(seed, step, item.sample_id(k)))
            for item in items for k in range(group_size)]


def reward_sample(encoded: EncodedPrompt, completion: str) -> RewardSample:
    """What a reward sees of a completion of this prompt."""
    prompt = encoded.prompt
    return RewardSample(prompt.question, completion, prompt.answer, prompt.domain, prompt.language, prompt.metadata,
                        starts_in_reasoning=opens_reasoning(encoded))


def generate_and_score(items: Sequence[WorkItem], group_size: int, *, generator: Generator, pool: RewardPool | None, replica: Replica,
                       sampling: SamplingParams, seed: int, step: int, terms_of: TermsOf | None = None) -> tuple[list[ScoredGroup], dict[str, float]]:
    """This replica's groups, scored, in the order of `items`, and how long it took: `generate_seconds`, `score_seconds` (after generation).

    A collective over all ranks. `pool` is there on the replica's lead alone; every rank of the replica returns the same groups. Completions are
    submitted to the pool as they finish. `terms_of` chooses the pool's terms for each prompt; by default those of its domain.
    """
    prompts = {item.sample_id(k): item.prompt for item in items for k in range(group_size)}
    completions: dict[str, Completion] = {}

    def on_finish(completion: Completion) -> None:
        completions[completion.id] = completion
        if pool is not None:
            prompt = prompts[completion.id]
            pool.submit(completion.id, reward_sample(prompt, completion.text), terms_of(prompt.prompt) if terms_of else None)

    began = time.perf_counter()
    generator.generate(make_requests(items, group_size, sampling, seed, step), on_finish)
    generated = time.perf_counter()
    verdicts = {verdict.key: verdict for verdict in pool.finish()} if pool is not None else {}
    verdicts = replica.from_lead(verdicts)
    seconds = {"generate_seconds": generated - began, "score_seconds": time.perf_counter() - generated}
    return [_group(item, group_size, completions, verdicts) for item in items], seconds


def _group(item: WorkItem, group_size: int, completions: Mapping[str, Completion], verdicts: Mapping[str, Verdict]) -> ScoredGroup:
    ids = [item.sample_id(k) for k in range(group_size)]
    mine = [verdicts[sample] for sample in ids]
    names = list(mine[0].parts)
    if any(list(verdict.parts) != names for verdict in mine):
        raise RewardError(f"the samples of prompt '{item.prompt.prompt.id}' were scored by different reward terms; their rewards cannot be compared")
    return ScoredGroup(
        group=RolloutGroup(item.prompt, tuple(completions[sample] for sample in ids)), rewards=tuple(verdict.value for verdict in mine),
        parts={name: tuple(verdict.parts[name] for verdict in mine) for name in names}, valid=tuple(verdict.valid for verdict in mine))
