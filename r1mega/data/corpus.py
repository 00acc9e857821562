"""Samples to fine-tune on: the rows stay on disk and are encoded when their turn comes; in memory are their lengths alone.

The recipe's set has 4.3 billion tokens (R1_RECIPE section 2.4): no rank holds it. Each rank encodes its share once, to learn the lengths and to find
every fault before training begins; ranks exchange only that table.
"""

from __future__ import annotations

import functools
import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from r1mega.config import TemplateConfig
from r1mega.data.chat import encode_sample
from r1mega.data.records import SampleRecord, SampleRows
from r1mega.errors import DataError
from r1mega.hookspecs import Tokenizer
from r1mega.split import split_of, text_id
from r1mega.types import TrainSequence

_log = logging.getLogger(__name__)

Gather = Callable[[np.ndarray], Sequence[np.ndarray]]  # a rank's array -> every rank's, in rank order


class EncodedRows:
    """The rows of several `SampleSet`s, one set after the other, encoded on access."""

    def __init__(self, folders: Sequence[Path], template: TemplateConfig, tokenizer: Tokenizer) -> None:
        self.source = " and ".join(str(folder) for folder in folders)
        self._tables = [SampleRows(folder) for folder in folders]
        self._ends = list(accumulate(len(table) for table in self._tables))
        self._encode = functools.partial(encode_sample, template=template, tokenizer=tokenizer)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> TrainSequence:
        return self.load(index)[1]

    def load(self, index: int) -> tuple[SampleRecord, TrainSequence]:
        """A row and its tokens. Raises `DataError` with file and line."""
        table = bisect_right(self._ends, index)
        rows, place = self._tables[table], index - (self._ends[table - 1] if table else 0)
        record = rows[place]
        try:
            return record, self._encode(record)
        except (ValueError, DataError) as error:  # no text to learn, text that cannot be encoded, turns out of order
            raise DataError(f"{rows.where(place)}: {error}") from error


@dataclass(frozen=True)
class Corpus:
    """Which rows are trained on, which are held out; indices into `rows`, in the order of the files."""

    rows: EncodedRows
    lengths: np.ndarray  # int64 [all rows], in tokens
    train: np.ndarray  # int64 [n]
    held_out: np.ndarray  # int64 [m]
    dropped: int  # rows longer than the limit

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The training rows in the epoch's order, int64 [n]: a pure function of (seed, epoch), so that a resumed run goes on in it."""
        return self.train[np.random.default_rng([seed, epoch]).permutation(len(self.train))]

    def batch(self, step: int, batch_size: int, seed: int) -> tuple[int, list[int]]:
        """(epoch from 0, rows) of step 1, 2, ...; an epoch's last batch is what is left."""
        epoch, place = divmod(step - 1, self.steps_per_epoch(batch_size))
        return epoch, self.order(seed, epoch)[place * batch_size: (place + 1) * batch_size].tolist()

    def steps_per_epoch(self, batch_size: int) -> int:
        return -(-len(self.train) // batch_size)

    @property
    def tokens(self) -> int:
        """Training tokens of one epoch, prompts included."""
        return int(self.lengths[self.train].sum())


def survey(rows: EncodedRows, *, limit: int, held_out: float, rank: int, world_size: int, gather: Gather) -> Corpus:
    """Encode this rank's share of the rows and put the ranks' findings together. A collective through `gather`.

    A sample of more than `limit` tokens is dropped, not cut: a cut one would teach answers without an end. The share `held_out` is chosen by the
    prompt's identity, so that all samples of a prompt are on one side. Raises `DataError` for a malformed row, and when none is left to train on.
    """
    if not len(rows):
        raise DataError(f"{rows.source}: no samples to train on; look at why the stage that made the set kept none")
    mine = np.zeros((len(range(rank, len(rows), world_size)), 2), np.int64)
    for place, index in enumerate(range(rank, len(rows), world_size)):
        record, sequence = rows.load(index)
        mine[place] = len(sequence), _is_held_out(record, held_out)
    table = np.zeros((len(rows), 2), np.int64)
    for other, found in enumerate(gather(mine)):
        table[other::world_size] = found
    lengths, fits, test = table[:, 0], table[:, 0] <= limit, table[:, 1] > 0
    dropped = int((~fits).sum())
    if rank == 0 and dropped:
        _log.warning("%d of %d samples are longer than %d tokens and are left out; the longest has %d", dropped, len(rows), limit, lengths.max())
    corpus = Corpus(rows, lengths, np.flatnonzero(fits & ~test), np.flatnonzero(fits & test), dropped)
    if not len(corpus.train):
        raise DataError(f"{rows.source}: none of {len(rows)} samples is left to train on: {dropped} are longer than {limit} tokens, "
                        f"{len(corpus.held_out)} are held out; raise max_length or lower validation_fraction")
    return corpus


def _is_held_out(record: SampleRecord, fraction: float) -> bool:
    prompt = record.provenance.get("prompt_id") or text_id(record.prompt)
    return split_of(f"held out of fine-tuning: {prompt}", fraction, 0) == "test"  # a task's own split hashes the bare identity
