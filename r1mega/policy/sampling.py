"""Drawing the next token: randomness is a hash of (seed, position), so a sample does not depend on who draws it or beside what."""

from __future__ import annotations

import numpy as np
import torch


def uniforms(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One float64 in [0, 1) per row from uint64 seeds and token positions (splitmix64 of their combination)."""
    with np.errstate(over="ignore"):
        x = seeds + positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    uniform: np.ndarray = (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform


def draw(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor | None, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids int64 [B], log-probs float32 [B]) from logits [B, V], by inverting the cumulative distribution at `uniform` [B].

    `temperature` [B]: 0 takes the most likely token. Log-probs are of the distribution at that temperature (1 where it is 0), before top-p.
    """
    greedy = temperature == 0
    x = logits.float() / torch.where(greedy, 1.0, temperature)[:, None]
    logprobs = torch.log_softmax(x, dim=-1)
    probabilities = logprobs.exp()
    if top_p is not None:
        probabilities = _truncate(probabilities, top_p)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    tokens = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(-1)
    if greedy.any():
        tokens = torch.where(greedy, x.argmax(-1), tokens)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def _truncate(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches top_p [B]; the rest becomes 0."""
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probabilities).scatter_(-1, order, ordered.masked_fill(before >= top_p[:, None], 0.0))
