"""Log-probabilities and entropy from vocabulary-parallel logits, without gathering them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class _VocabParallelLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup | None, valid: int, temperature: float,
                ) -> tuple[torch.Tensor, torch.Tensor]:
        parallel = group is not None and group.size() > 1
        start = logits.shape[-1] * group.rank() if parallel and group is not None else 0
        x = logits.float()
        x = x / temperature if temperature != 1.0 else x.clone() if x is logits else x
        padded_from = max(0, min(x.shape[-1], valid - start))
        x[:, padded_from:] = float("-inf")
        top = x.amax(-1)
        if parallel:
            dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        x.sub_(top[:, None])
        local = labels - start
        mine = (local >= 0) & (local < x.shape[-1])
        target = x.gather(-1, local.clamp(0, x.shape[-1] - 1)[:, None])[:, 0].masked_fill(~mine, 0.0)
        p = x.exp()
        sums = torch.stack([p.sum(-1), (p * x.clamp_min(-1e30)).sum(-1), target])
        if parallel:
            dist.all_reduce(sums, group=group)
        total, weighted, target = sums
        log_total = total.log()
        logprob, entropy = target - log_total, log_total - weighted / total
        p.div_(total[:, None])
        ctx.save_for_backward(p, local, mine, entropy)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        p, local, mine, entropy = ctx.saved_tensors
        of_logprob, of_entropy = grads
        grad = p * (-of_logprob)[:, None]
        rows = mine.nonzero()[:, 0]
        grad[rows, local[rows]] += of_logprob[rows]
        if of_entropy.any():
            grad.sub_(p * (p.clamp_min(1e-38).log() + entropy[:, None]) * of_entropy[:, None])
        return (grad / ctx.temperature).to(ctx.dtype), None, None, None, None


def vocab_parallel_logprobs(logits: torch.Tensor, labels: torch.Tensor, *, valid: int, temperature: float = 1.0,
                            group: dist.ProcessGroup | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each label and entropy of each row's distribution, both float32 [T] and differentiable.

    `logits` [T, V / TP] is this rank's slice of the vocabulary, `labels` [T] are global ids, `valid` is the true vocabulary size: ids from it
    on are padding with probability 0. Both results are those of the distribution at `temperature`.
    """
    logprob, entropy = _VocabParallelLogProbs.apply(  # type: ignore[no-untyped-call]
        logits, labels, group, valid, temperature)
    return logprob, entropy
