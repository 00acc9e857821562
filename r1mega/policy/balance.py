"""The sequence-wise balance loss of DeepSeek-V3 (arXiv 2412.19437, equations 17-20) on packed rows.

Megatron takes a row for one sequence, so its loss would depend on what happens to be packed together. Here each real sequence of a row has its
own, padding has none. A row's loss is the sum over its sequences of (tokens x loss): divided by the step's tokens, as all losses are, that is the
mean over sequences weighted by their length, whatever the packing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter

from r1mega.policy.packed import PackedBatch


class SequenceRouter(TopKRouter):  # type: ignore[misc]
    """Megatron's router; `batch` is what its layer is called with (`follow_batches`)."""

    batch: PackedBatch | None = None

    def _apply_seq_aux_loss(self, probs: torch.Tensor, scores_for_aux_loss: torch.Tensor, routing_map: torch.Tensor, *_row: Any,
                            **_named: Any) -> torch.Tensor:
        """`probs` [t, E] with the loss attached for the backward pass, for this rank's t tokens of the row. `scores_for_aux_loss` (sum 1 per token) and
        `routing_map` (its top k) are [t, E]."""
        coefficient = self.get_aux_loss_coeff("seq_aux_loss")
        if coefficient == 0 or self.batch is None or not self.batch.real_lengths:
            return probs
        loss = balance_loss(scores_for_aux_loss, routing_map, self.batch.real_lengths, self._sequences(self.batch), self.topk, self.tp_cp_group)
        attached: torch.Tensor = MoEAuxLossAutoScaler.apply(probs, coefficient * loss)
        return attached

    def _sequences(self, batch: PackedBatch) -> torch.Tensor:
        """int64 [t]: which sequence each of this rank's tokens belongs to."""
        assert batch.cu_seqlens_q is not None
        lengths = batch.cu_seqlens_q.diff()
        index = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        if batch.share is not None:
            index = index[batch.share.index]
        if self.config.sequence_parallel:
            index = index.chunk(self.tp_group.size())[self.tp_group.rank()]
        return index


def balance_loss(scores: torch.Tensor, routing_map: torch.Tensor, lengths: tuple[int, ...], index: torch.Tensor, topk: int, group: Any) -> torch.Tensor:
    """This rank's part of the sum over sequences of T x sum_i(f_i P_i), f_i = E / (k T) x (tokens routed to expert i), P_i = mean score of expert i.

    `lengths` are the whole sequences' T; tokens whose `index` [t] lies beyond them are padding. The ranks of `group` hold the rows' other tokens; the
    sum of their parts is the loss.
    """
    count, experts = len(lengths), scores.shape[1]
    real = index < count
    index, tokens = index[real], scores.new_tensor(lengths)
    routed = scores.new_zeros(count, experts).index_add_(0, index, routing_map[real].to(scores.dtype))
    routed = reduce_from_tensor_model_parallel_region(routed, group)
    score = scores.new_zeros(count, experts).index_add(0, index, scores[real])
    loss: torch.Tensor = ((routed * score).sum(1) / tokens).sum() * (experts / topk)
    return loss


def follow_batches(model: torch.nn.Module) -> None:
    """Let every `SequenceRouter` know the batch that its layer is called with, also when activations are recomputed layer by layer."""
    for layer in model.modules():
        router = getattr(getattr(layer, "mlp", None), "router", None)
        if isinstance(router, SequenceRouter):
            layer.register_forward_pre_hook(partial(_tell, router), with_kwargs=True)


def _tell(router: SequenceRouter, _layer: torch.nn.Module, _arguments: Any, named: dict[str, Any]) -> None:
    router.batch = named.get("packed_seq_params")
