"""Random samples for the algorithm tests, packed as the trainer packs them. Not a test module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from r1mega.types import MicroBatch


@dataclass(frozen=True)
class Sample:
    """One completion of C tokens behind a prompt; tensors [C]. `logprobs` is a leaf that collects gradients."""

    prompt_length: int
    logprobs: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor
    entropy: torch.Tensor
    advantage: float


def random_samples(lengths: Sequence[int], *, spread: float = 0.3, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Sample]:
    """Samples whose old and reference log-probs lie `spread` nats (standard deviation) around the policy's."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    samples = []
    for index, length in enumerate(lengths):
        logprobs = -normal(length).abs() - 0.1
        samples.append(Sample(
            prompt_length=1 + index % 3,
            logprobs=logprobs.to(dtype, copy=True).requires_grad_(),
            old=(logprobs + spread * normal(length)).to(dtype),
            ref=(logprobs + spread * normal(length)).to(dtype),
            entropy=normal(length).abs().to(dtype),
            advantage=float(normal(1)),
        ))
    return samples


def pack(
    samples: Sequence[Sample], weights: Sequence[float], *, padding: int = 0, old: bool = True, ref: bool = True
) -> tuple[torch.Tensor, torch.Tensor, MicroBatch]:
    """(logprobs [T], entropy [T], micro-batch). Everything at tokens without weight is NaN or infinite: it must not matter."""
    lengths = [sample.prompt_length + len(sample.logprobs) for sample in samples] + ([padding] if padding else [])

    def lay_out(parts: Sequence[torch.Tensor], fill: float) -> torch.Tensor:
        pieces = []
        for sample, part in zip(samples, parts, strict=True):
            pieces += [part.new_full((sample.prompt_length - 1,), fill), part, part.new_full((1,), fill)]
        return torch.cat([*pieces, parts[0].new_full((padding,), fill)])

    logprobs = lay_out([sample.logprobs for sample in samples], torch.nan)
    tokens = torch.zeros(sum(lengths), dtype=torch.int64)
    batch = MicroBatch(
        tokens=tokens, labels=tokens, positions=torch.cat([torch.arange(length) for length in lengths]), lengths=tuple(lengths),
        weights=lay_out([torch.full_like(s.logprobs, weight) for s, weight in zip(samples, weights, strict=True)], 0.0).detach(),
        sequence_index=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)), num_sequences=len(samples),
        advantages=lay_out([torch.full_like(s.logprobs, s.advantage) for s in samples], torch.nan).detach(),
        old_logprobs=lay_out([s.old for s in samples], -torch.inf) if old else None,
        ref_logprobs=lay_out([s.ref for s in samples], torch.inf) if ref else None,
    )
    return logprobs, lay_out([s.entropy for s in samples], torch.nan), batch
