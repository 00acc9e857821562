"""From training sequences to one packed micro-batch of tensors, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from r1mega.types import MicroBatch, TrainSequence

OPTIONAL = ("advantages", "behaviour_logprobs", "old_logprobs", "ref_logprobs")


def make_microbatch(sequences: Sequence[TrainSequence], pad_multiple: int) -> MicroBatch:
    """Lay `sequences` end to end and pad the row with zeros to a multiple of `pad_multiple` tokens.

    A `TrainSequence` speaks of tokens, a `MicroBatch` of predictions: entry t of every field belongs to `labels[t]`, so each array moves one
    place to the left, and a sequence's last position predicts nothing (label 0, weight 0). An optional field is there if all sequences have
    it. Without any sequence the row is padding alone with every optional field there: for a replica with fewer sequences than micro-batches.

    Raises `ValueError` for an empty sequence, or an optional field that only some sequences have.
    """
    if pad_multiple < 1:
        raise ValueError(f"pad_multiple must be at least 1, got {pad_multiple}")
    lengths = [len(sequence) for sequence in sequences]
    for sequence in sequences:
        if len(sequence) == 0:
            raise ValueError(f"sequence '{sequence.id}' has no tokens")
    used = sum(lengths)
    total = max(-(-used // pad_multiple), 1) * pad_multiple
    rows = [*lengths, total - used] if total > used else lengths
    tokens = np.zeros(total, np.int64)
    tokens[:used] = np.concatenate([sequence.tokens for sequence in sequences]) if sequences else 0
    return MicroBatch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(_predictions([sequence.tokens for sequence in sequences], total, np.int64)),
        positions=torch.from_numpy(np.concatenate([np.arange(row, dtype=np.int64) for row in rows])),
        lengths=tuple(rows),
        weights=torch.from_numpy(_predictions([sequence.weights for sequence in sequences], total, np.float32)),
        sequence_index=torch.from_numpy(np.repeat(np.arange(len(rows), dtype=np.int64), rows)),
        num_sequences=len(sequences),
        **{name: _optional(sequences, name, total) for name in OPTIONAL},
    )


def _predictions(arrays: Sequence[np.ndarray], total: int, dtype: type[np.generic]) -> np.ndarray:
    """Each array [L] one place to the left, its last entry 0, laid end to end in a row [total] of zeros."""
    row = np.zeros(total, dtype)
    start = 0
    for array in arrays:
        row[start : start + len(array) - 1] = array[1:]
        start += len(array)
    return row


def _optional(sequences: Sequence[TrainSequence], name: str, total: int) -> torch.Tensor | None:
    arrays = [getattr(sequence, name) for sequence in sequences]
    absent = [sequence.id for sequence, array in zip(sequences, arrays, strict=True) if array is None]
    if not absent:
        return torch.from_numpy(_predictions(arrays, total, np.float32))
    if len(absent) < len(arrays):
        raise ValueError(f"{len(absent)} of {len(arrays)} sequences of one micro-batch have no {name}, the first is '{absent[0]}'; "
                         "give it to all of them or to none")
    return None


def unpack(values: torch.Tensor, microbatch: MicroBatch) -> list[np.ndarray]:
    """Per-prediction `values` [T] as one array [L] per sequence, indexed by token: entry 0, which nothing predicts, is 0.

    The way back from `make_microbatch`, for log-probs: float64 stays, every other type becomes float32. Padding is dropped.
    """
    if values.shape != microbatch.tokens.shape:
        raise ValueError(f"values have shape {tuple(values.shape)}, the micro-batch {tuple(microbatch.tokens.shape)}")
    kept = values.detach().to("cpu", torch.float64 if values.dtype == torch.float64 else torch.float32).numpy()
    arrays, start = [], 0
    for length in microbatch.lengths[: microbatch.num_sequences]:
        array = np.zeros(length, kept.dtype)
        array[1:] = kept[start : start + length - 1]
        arrays.append(array)
        start += length
    return arrays
