"""Forward and backward passes written out where autograd's own are wasteful on a CPU. Same mathematics, checked against autograd by a test."""

from __future__ import annotations

from typing import Any

import torch

_aten = torch.ops.aten


class _RmsNormalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        rows = x.flatten(0, -2)
        inverse = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(rows, inverse, weight)
        out: torch.Tensor = (rows * inverse).mul_(weight)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, inverse, weight = ctx.saved_tensors
        grad = grads[0].reshape(rows.shape)
        of_x, of_weight, _ = _aten.native_layer_norm_backward(
            grad, rows, [rows.shape[-1]], torch.zeros_like(inverse), inverse, weight, None, [True, True, False])
        of_x.add_((grad @ weight)[:, None].mul_(inverse).div_(rows.shape[-1]))
        return of_x.view(grads[0].shape), of_weight, None


class _ToRectangles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


class _FromRectangles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: torch.Tensor, inverse: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, padding)
        return x.index_select(0, inverse)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, padding = ctx.saved_tensors
        return grads[0].index_select(0, rows).index_fill_(0, padding, 0.0), None, None, None


class _LatentHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, kv: torch.Tensor, place: torch.Tensor, phase: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(phase)
        content = ctx.content = q.shape[-1] - place.shape[-1]
        query = _turned(q, phase)
        key = torch.empty_like(query)
        key[..., :content] = kv[..., :content]
        key[..., content:] = _turned(place[:, None], phase[..., content // 2:])
        return query, key, kv[..., content:].contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_query, of_key, of_value = grads
        phase, content = ctx.saved_tensors[0].conj().resolve_conj(), ctx.content
        of_kv = of_key.new_empty(*of_key.shape[:2], content + of_value.shape[-1])
        of_kv[..., :content] = of_key[..., :content]
        of_kv[..., content:] = of_value
        of_place = _turned(of_key[..., content:].sum(1, keepdim=True), phase[..., content // 2:])
        return _turned(of_query, phase), of_kv, of_place[:, 0], None


def _turned(x: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
    """Neighbouring coordinates of x [T, heads, d], as complex numbers, times `phase` [T, 1, d / 2]."""
    pairs = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * phase).flatten(-2)


def rms_normalize(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / rms(x) * weight` over the last dimension.

    The backward pass is layer norm's, one fused kernel, told that the mean is 0; what it takes off for the mean is put back.
    """
    out: torch.Tensor = _RmsNormalize.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


def to_rectangles(x: torch.Tensor, rows: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """The rows of x [T, ...] at `rows`, among which row t stands at `inverse[t]`; the others are padding that gets no gradient."""
    out: torch.Tensor = _ToRectangles.apply(x, rows, inverse)  # type: ignore[no-untyped-call]
    return out


def from_rectangles(x: torch.Tensor, rows: torch.Tensor, inverse: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """The way back from `to_rectangles`; `padding` are the rows that are dropped."""
    out: torch.Tensor = _FromRectangles.apply(x, rows, inverse, padding)  # type: ignore[no-untyped-call]
    return out


def latent_heads(q: torch.Tensor, kv: torch.Tensor, place: torch.Tensor, phase: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Multi-latent attention's query, key and value from its up projections, positions applied.

    q [T, n, c + p], kv [T, n, c + v], place [T, p] (the part of the key that all heads share) and `phase` complex [T, 1, (c + p) / 2]:
    e^(i angle) for the p coordinates, 1 for the c. The coordinates come interleaved and stay so: Megatron sorts them into halves, in queries
    and keys alike, which no product of the two can tell. Returns query, key [T, n, c + p] and value [T, n, v].
    """
    out: tuple[torch.Tensor, ...] = _LatentHeads.apply(q, kv, place, phase)  # type: ignore[no-untyped-call]
    return out
