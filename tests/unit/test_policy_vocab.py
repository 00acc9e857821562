"""Vocabulary-parallel log-probs and entropy against torch's own, values and gradients, on one and two ranks."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
import torch

from r1mega.policy.vocab import vocab_parallel_logprobs

VALID, PADDED = 53, 64


def reference(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """In float64, without the padding ids."""
    whole = torch.distributions.Categorical(logits=logits.double()[:, :VALID] / temperature)
    return whole.log_prob(labels), whole.entropy()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 3.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])  # 30: most probabilities underflow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_equal_torch(temperature: float, scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(40, PADDED, generator=generator) * scale).to(dtype)
    labels = torch.randint(0, VALID, (40,), generator=generator)
    of_logprob, of_entropy = torch.randn(2, 40, generator=generator)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    logprob, entropy = vocab_parallel_logprobs(ours, labels, valid=VALID, temperature=temperature)
    expected = reference(theirs, labels, temperature)
    (logprob @ of_logprob + entropy @ of_entropy).backward()
    (expected[0] @ of_logprob.double() + expected[1] @ of_entropy.double()).backward()
    assert logprob.dtype == entropy.dtype == torch.float32
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(logprob.double(), expected[0], atol=2e-5, rtol=1e-6)
    torch.testing.assert_close(entropy.double(), expected[1], atol=2e-5, rtol=1e-5)
    atol, rtol = (2e-5, 1e-4) if dtype == torch.float32 else (2e-2, 1e-2)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=atol, rtol=rtol)
    assert not ours.grad[:, VALID:].any(), "padding ids have no gradient"
    assert torch.equal(ours.detach(), logits), "the logits are not changed in place"


def test_gradients_equal_finite_differences() -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(3, 8), torch.tensor([0, 5, 2])

    def value(x: torch.Tensor) -> torch.Tensor:
        logprob, entropy = vocab_parallel_logprobs(x, labels, valid=6)
        return (logprob * torch.tensor([1.0, -2.0, 0.5])).sum() + (entropy * torch.tensor([0.3, 1.0, -1.0])).sum()

    x = logits.clone().requires_grad_()
    (ours,) = torch.autograd.grad(value(x), x)
    step = 1e-2
    for place in [(0, 0), (0, 5), (1, 3), (1, 5), (2, 2), (2, 7)]:
        shift = torch.zeros_like(logits)
        shift[place] = step
        difference = float(value(logits + shift) - value(logits - shift)) / (2 * step)
        assert abs(float(ours[place]) - difference) < 1e-3, f"at {place}: {float(ours[place])} against {difference}"


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from r1mega.policy.vocab import vocab_parallel_logprobs
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
for valid in (53, 30):  # 30: all of the second rank's ids are padding
    whole, labels, weights = torch.randn(20, 64), torch.randint(0, valid, (20,)), torch.randn(2, 20)
    part, alone = whole.chunk(2, 1)[rank].clone().requires_grad_(), whole.clone().requires_grad_()
    here = torch.stack(vocab_parallel_logprobs(part, labels, valid=valid, temperature=0.8, group=dist.group.WORLD))
    one = torch.stack(vocab_parallel_logprobs(alone, labels, valid=valid, temperature=0.8))
    (here * weights).sum().backward(); (one * weights).sum().backward()
    torch.testing.assert_close(here, one, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(part.grad, alone.grad.chunk(2, 1)[rank], atol=1e-6, rtol=1e-5)
dist.destroy_process_group()
"""


def test_two_ranks_equal_one() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    ranks = [subprocess.Popen([sys.executable, "-c", TWO_RANKS, str(rank), address], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)
