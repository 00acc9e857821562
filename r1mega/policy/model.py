"""Megatron-Core's `GPTModel` with the policy's own output stage: log-probs and entropy for training, last-token logits for generation."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule

from r1mega.policy.balance import follow_batches
from r1mega.policy.layers import PositionalRotary
from r1mega.policy.packed import DecodeBatch, PackedBatch, PrefillBatch
from r1mega.policy.vocab import vocab_parallel_logprobs


@dataclass
class OutputOptions:
    """What the output stage computes; one object shared by all chunks of a rank, set by the caller of a pass."""

    vocab_size: int  # without padding
    reward_head: bool = False  # whether the last stage has a scalar head; fixed when the model is built
    values: bool = False  # return the scalar head's value at each token, float32 [1, T], in place of log-probs
    temperature: float = 1.0
    mtp: bool = False  # also the multi-token-prediction log-probs
    mtp_detach: bool = False  # keep the MTP loss out of the trunk, the embedding and the head


class RewardHead(MegatronModule):
    """From the trunk's last hidden state to one number: what makes a policy a reward model (paper v2 section 3.1)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.weight = torch.nn.Parameter(torch.zeros(1, config.hidden_size, dtype=config.params_dtype))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, 1, h] -> [T, 1, 1]."""
        return torch.nn.functional.linear(hidden, self.weight)


class PolicyModel(GPTModel):
    """One pipeline chunk. With labels, the last stage returns float32 [2 + MTP depth, T]: log-prob, entropy, MTP log-probs of each label."""

    def __init__(self, *args: Any, options: OutputOptions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.options = options
        if self.post_process and options.reward_head:
            self.reward_head = RewardHead(self.config)
        rotary: Any = getattr(self, "rotary_pos_emb", None)
        if rotary is not None:
            self.rotary_pos_emb = PositionalRotary(rotary, per_head=True)
        for module in self.modules():
            if module is not self and isinstance(getattr(module, "rotary_pos_emb", None), torch.nn.Module):
                module.rotary_pos_emb = PositionalRotary(module.rotary_pos_emb, per_head=False)
        follow_batches(self)
        for layer in self.mtp.layers if self.mtp_process else ():
            layer.cp_group = None  # `_mtp_states` shifts the tokens itself, over the whole row
            if "forward_func" in inspect.signature(layer._checkpointed_forward).parameters:
                layer._checkpointed_forward = functools.partial(_recompute_packed, layer._checkpointed_forward)

    def _postprocess(self, hidden_states: torch.Tensor, input_ids: torch.Tensor, position_ids: torch.Tensor, labels: torch.Tensor | None = None,
                     rotary_pos_emb: Any = None, attention_mask: Any = None, packed_seq_params: PackedBatch | None = None, **kwargs: Any) -> torch.Tensor:
        del kwargs
        if not self.post_process:
            return hidden_states
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        if isinstance(packed_seq_params, PrefillBatch | DecodeBatch):
            return self._last_logits(hidden_states, weight, packed_seq_params)
        if self.options.values:
            return self._values(hidden_states)
        assert labels is not None
        depths: list[tuple[Any, ...]] = [(hidden_states, labels[0], weight)]
        if self.options.mtp and self.mtp_process:
            depths += self._mtp_states(hidden_states, input_ids, position_ids, labels, rotary_pos_emb, attention_mask, packed_seq_params, weight)
        rows: list[torch.Tensor] = []
        for hidden, target, head in depths:
            logits, _ = self.output_layer(hidden, weight=head)
            logprob, entropy = vocab_parallel_logprobs(logits.flatten(0, 1), target, valid=self.options.vocab_size, temperature=self.options.temperature,
                                                       group=self.pg_collection.tp)
            rows += [logprob, entropy] if not rows else [logprob]
        return torch.stack(rows)

    def _mtp_states(self, hidden: torch.Tensor, input_ids: torch.Tensor, position_ids: torch.Tensor, labels: torch.Tensor, rotary_pos_emb: Any,
                    attention_mask: Any, packed_seq_params: PackedBatch | None, weight: torch.Tensor | None) -> list[tuple[Any, ...]]:
        """(hidden, labels, head weight) of each MTP depth; depth k at token t predicts the label of token t + k + 1."""
        assert packed_seq_params is not None
        detach, share = self.options.mtp_detach, packed_seq_params.share
        embedding, ends = self.embedding, packed_seq_params.cu_seqlens_q[1:].long() - 1
        ids, target = (input_ids[0], labels[0]) if share is None else (share.tokens, share.labels)

        def next_ones(row: torch.Tensor) -> torch.Tensor:
            row = torch.roll(row, -1)
            row[ends] = 0  # nothing follows there: the loss weight of these positions is 0
            return row

        def mine(row: torch.Tensor) -> torch.Tensor:
            return row if share is None else row[share.index]

        def embed(input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
            nonlocal ids
            del input_ids  # Megatron's shifted ids know this rank's tokens alone
            ids = next_ones(ids)
            out: torch.Tensor = embedding(input_ids=mine(ids)[None], position_ids=position_ids)
            return out.detach() if detach else out

        if detach:  # still a leaf that wants a gradient: otherwise recomputing the MTP layer would give its weights none
            hidden = hidden.detach().requires_grad_(hidden.requires_grad)
        states = self.mtp(input_ids=input_ids, position_ids=position_ids, hidden_states=hidden,
                          attention_mask=attention_mask, rotary_pos_emb=rotary_pos_emb, packed_seq_params=packed_seq_params, embedding=embed)
        chunks = torch.chunk(states, 1 + self.config.mtp_num_layers, dim=0)[1:]
        head = self.output_layer.weight if weight is None else weight
        head = head.detach() if detach else head
        found = list[tuple[Any, ...]]()
        for chunk in chunks:
            target = next_ones(target)
            found.append((chunk, mine(target), head))
        return found

    def _values(self, hidden: torch.Tensor) -> torch.Tensor:
        """The scalar head's value at each token, float32 [1, T]. Every tensor-parallel rank computes it whole, so its gradient is not summed."""
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False, group=self.pg_collection.tp)
        values: torch.Tensor = self.reward_head(hidden)[:, 0, 0].float()
        return values[None]

    def _last_logits(self, hidden: torch.Tensor, weight: torch.Tensor | None, batch: PrefillBatch | DecodeBatch) -> torch.Tensor:
        """Logits [rows, V / TP] at `batch.logit_rows` (all rows if None)."""
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, group=self.pg_collection.tp)
        hidden = hidden[:, 0] if batch.logit_rows is None else hidden[batch.logit_rows, 0]
        logits: torch.Tensor = torch.nn.functional.linear(hidden, self.output_layer.weight if weight is None else weight)
        return logits


def _recompute_packed(original: Callable[..., Any], forward: Callable[..., Any], **inputs: Any) -> Any:
    """Recomputation of an MTP layer: Megatron-Core 0.16 hands all inputs to the checkpoint, which takes tensors alone; the rest goes round it."""
    tensors = {name: value for name, value in inputs.items() if torch.is_tensor(value)}
    others = {name: value for name, value in inputs.items() if name not in tensors}

    def run(*values: torch.Tensor, **named: torch.Tensor) -> Any:
        return forward(**dict(zip(tensors, values, strict=False)), **named, **others)

    return original(run, **tensors)
