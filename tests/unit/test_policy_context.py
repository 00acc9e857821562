"""How a packed row is shared out over context-parallel ranks: every token once, every query with exactly the keys it may see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r1mega.policy.context import share_of
from r1mega.rollout.batching import make_microbatch
from r1mega.types import TrainSequence


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("lengths", [(8,), (1, 1, 1), (5, 17, 2, 9), (40, 3)])
def test_shares_are_exact(size: int, lengths: tuple[int, ...]) -> None:
    batch = make_microbatch([TrainSequence(str(n), np.arange(n), np.ones(n, np.float32)) for n in lengths], 2 * size)
    shares = [share_of(batch, rank, size, None) for rank in range(size)]
    gathered = torch.cat([share.index for share in shares])
    assert torch.equal(gathered[shares[0].restore], torch.arange(len(batch.tokens))), "the shares of all ranks are not the row"
    assert len({len(share.index) for share in shares}) == 1, "ranks have unequal shares"
    for share in shares:
        seen: list[int] = []
        for piece in share.pieces:
            places = share.index[piece.queries].tolist()
            sequence = {int(batch.sequence_index[place]) for place in places}
            assert len(sequence) == 1, "a piece crosses sequences"
            keys = list(range(piece.keys.start, piece.keys.stop))
            assert {int(batch.sequence_index[key]) for key in keys} == sequence
            assert places == keys[len(keys) - len(places):], "causal attention aligned at the end would see other keys"
            assert piece.keys.start == 0 or batch.sequence_index[piece.keys.start - 1] not in sequence, "keys of the sequence's beginning are missing"
            seen += range(piece.queries.start, piece.queries.stop)
        assert seen == list(range(len(share.index))), "a token of the share is in no piece, or in two"


def test_every_rank_has_early_and_late_tokens() -> None:
    batch = make_microbatch([TrainSequence("a", np.arange(64), np.ones(64, np.float32))], 8)
    work = [sum(piece.keys.stop - piece.keys.start for piece in share_of(batch, rank, 4, None).pieces) for rank in range(4)]
    assert len(set(work)) == 1, f"causal attention costs the ranks {work} keys"
