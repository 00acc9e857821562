"""Context parallelism: each rank of a context-parallel group computes its part of a row's tokens, for any attention (MLA, GQA) and any packing.

Of 2 * CP equal chunks of the row, rank r takes chunk r and chunk 2 * CP - 1 - r, so that every rank has early and late positions (Megatron's
zigzag, over the row instead of each sequence: sequences need no padding of their own). Keys and values are gathered before the core attention;
the few numbers per token that come out of the model are gathered after it. Everything between works on T / CP tokens, and nothing outside the
policy knows of it. This is the exchange of Llama 3 (arXiv 2407.21783, section 3.3.2), not Transformer Engine's ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch.nn.attention.bias import causal_lower_right

from r1mega.types import MicroBatch


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one sequence on this rank: `queries` in the rank's row; they see `keys` of the whole row, whose last is their last."""

    queries: slice
    keys: slice


@dataclass(frozen=True)
class ContextShare:
    """This rank's part of a row of T tokens."""

    index: torch.Tensor  # int64 [T / CP]: where its tokens stand in the row, ascending
    restore: torch.Tensor  # int64 [T]: where the row's tokens stand in the shares of all ranks, one after the other
    pieces: tuple[Piece, ...]
    tokens: torch.Tensor  # int64 [T], the whole row
    labels: torch.Tensor  # int64 [T], the whole row
    group: Any  # the context-parallel process group


def share_of(batch: MicroBatch, rank: int, size: int, group: Any) -> ContextShare:
    """The share of context-parallel rank `rank` of `size`. The row's length must be a multiple of 2 * `size`."""
    total, device = len(batch.tokens), batch.tokens.device
    chunk = total // (2 * size)
    places = [torch.cat([torch.arange(first * chunk, (first + 1) * chunk) for first in (r, 2 * size - 1 - r)]) for r in range(size)]
    restore = torch.argsort(torch.cat(places))
    return ContextShare(places[rank].to(device), restore.to(device), _pieces(batch.lengths, rank, size, chunk), batch.tokens, batch.labels, group)


def _pieces(lengths: Sequence[int], rank: int, size: int, chunk: int) -> tuple[Piece, ...]:
    found: list[Piece] = []
    for number, first in enumerate((rank * chunk, (2 * size - 1 - rank) * chunk)):
        shift, start = number * chunk - first, 0
        for length in lengths:
            low, high = max(start, first), min(start + length, first + chunk)
            if low < high:
                found.append(Piece(slice(low + shift, high + shift), slice(start, high)))
            start += length
    return tuple(found)


def context_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, share: ContextShare, scale: float | None) -> torch.Tensor:
    """Causal attention inside each sequence. q, k, v: [T / CP, heads, d] (k and v may have fewer heads); returns [T / CP, heads, d of v]."""
    k, v = (gather_from_sequence_parallel_region(x.contiguous(), group=share.group).index_select(0, share.restore) for x in (k, v))
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    outputs = []
    for piece in share.pieces:
        query, key, value = (x.transpose(0, 1)[None] for x in (q[piece.queries], k[piece.keys], v[piece.keys]))
        mask = causal_lower_right(query.shape[2], key.shape[2])
        outputs.append(F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)[0].transpose(0, 1))
    return torch.cat(outputs)


def gather_rows(rows: torch.Tensor, share: ContextShare) -> torch.Tensor:
    """[R, T / CP] of each rank -> [R, T] on all of them. Every rank computes the same loss of it; its gradient goes to the rank's own part alone."""
    columns = gather_from_sequence_parallel_region(rows.t().contiguous(), tensor_parallel_output_grad=False, group=share.group)
    whole: torch.Tensor = columns.index_select(0, share.restore).t()
    return whole
