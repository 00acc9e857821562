"""The hand-written backward passes against autograd's, finite differences, and Megatron's own layers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradcheck

from r1mega.policy.kernels import from_rectangles, latent_heads, rms_normalize, to_rectangles
from r1mega.policy.packed import plan_pack


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_rms_norm_is_torchs() -> None:
    x, weight = _random(5, 1, 12), _random(12, seed=1)
    ours = rms_normalize(x, weight, 1e-6)
    torchs = torch.nn.functional.rms_norm(x, (12,), weight, 1e-6)
    torch.testing.assert_close(ours, torchs)
    grad = torch.randn_like(ours)
    for mine, reference in zip(torch.autograd.grad(ours, (x, weight), grad), torch.autograd.grad(torchs, (x, weight), grad), strict=True):
        torch.testing.assert_close(mine, reference)
    assert gradcheck(lambda x, w: rms_normalize(x, w, 1e-6), (x, weight))


@pytest.mark.parametrize("lengths", [(7, 20, 13, 30, 11), (1, 2, 3, 40, 1), (3, 4)])
def test_rectangles_give_back_every_token_and_its_gradient(lengths: tuple[int, ...]) -> None:
    plan = plan_pack(lengths, torch.device("cpu"))
    x = _random(sum(lengths), 2)
    moved = to_rectangles(x, plan.rows, plan.inverse)
    back = from_rectangles(moved, plan.rows, plan.inverse, plan.padding)
    assert torch.equal(back, x)
    start = 0
    for bucket in plan.buckets:  # every sequence stands at the start of a row of its rectangle
        for row in moved[start: start + bucket.count * bucket.longest].view(bucket.count, bucket.longest, 2):
            place = next(i for i in range(len(lengths)) if torch.equal(row[0], x[sum(lengths[:i])]))
            assert torch.equal(row[: lengths[place]], x[sum(lengths[:place]): sum(lengths[: place + 1])])
        start += bucket.count * bucket.longest
    weight = _random(*x.shape, seed=2)
    (grad,) = torch.autograd.grad(back, x, weight)
    assert torch.equal(grad, weight)


def test_padding_gets_no_gradient_from_the_way_back() -> None:
    plan = plan_pack((10, 11, 3), torch.device("cpu"))
    assert plan.rows is not None
    assert plan.padding is not None
    x = _random(len(plan.rows), 2)
    (grad,) = torch.autograd.grad(from_rectangles(x, plan.rows, plan.inverse, plan.padding).sum(), x)
    assert len(plan.padding) == len(plan.rows) - 24 > 0
    assert not grad[plan.padding].any()
    assert int(grad.sum()) == 24 * 2


def test_latent_heads_score_as_megatrons_do() -> None:
    """Megatron's rotary embedding sorts coordinates into halves; the products of queries and keys, and so every gradient, are the same."""
    from r1mega.policy.platform import get_platform

    get_platform()
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd as megatrons

    tokens, heads, content, rotary, value = 6, 3, 4, 8, 5
    q, kv, place = _random(tokens, heads, content + rotary), _random(tokens, heads, content + value, seed=1), _random(tokens, rotary, seed=2)
    angles = torch.arange(tokens)[:, None] * 10.0 ** -torch.linspace(0, 2, rotary // 2, dtype=torch.float64)
    phase = torch.cat([torch.ones(tokens, 1, content // 2, dtype=torch.complex128), torch.polar(torch.ones_like(angles), angles)[:, None]], -1)

    def turned(x: torch.Tensor) -> torch.Tensor:
        return megatrons(x, torch.cat([angles, angles], -1)[:, None], False, True)

    query, key, values = latent_heads(q, kv, place, phase)
    theirs = SimpleNamespace(query=torch.cat([q[..., :content], turned(q[..., content:])], -1),
                             key=torch.cat([kv[..., :content], turned(place[:, None]).expand(-1, heads, -1)], -1))
    ours_scores, their_scores = (torch.einsum("thd,shd->hts", a, b) for a, b in ((query, key), (theirs.query, theirs.key)))
    torch.testing.assert_close(ours_scores, their_scores)
    assert torch.equal(values, kv[..., content:])
    weight, inputs = torch.randn_like(ours_scores), (q, kv, place)
    expected = torch.autograd.grad(their_scores, inputs, weight)
    for mine, reference in zip(torch.autograd.grad(ours_scores, inputs, weight), expected, strict=True):
        torch.testing.assert_close(mine, reference)
    assert gradcheck(lambda *inputs: latent_heads(*inputs, phase), (q, kv, place))
