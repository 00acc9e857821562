"""Initial weights: every one is drawn, in blocks or whole, and Megatron draws none of them before."""

from __future__ import annotations

from typing import Any

import policy_models as models
import pytest
import torch

from r1mega.config import ParallelConfig, PrecisionConfig
from r1mega.policy import initialize
from r1mega.policy.policy import Policy


def weights(**changes: Any) -> dict[str, torch.Tensor]:
    policy = Policy(models.deepseek(mtp_num_layers=1, **changes), vocab_size=models.VOCAB, parallel=ParallelConfig(), precision=PrecisionConfig(), seed=1)
    return dict(policy.chunks[0].named_parameters())


def test_in_blocks_the_numbers_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights()
    monkeypatch.setattr(initialize, "BLOCK", 900)
    for name, tensor in weights().items():
        assert torch.equal(tensor, whole[name]), name


def test_no_weight_keeps_what_the_memory_held(monkeypatch: pytest.MonkeyPatch) -> None:
    marked, mark = list[torch.Tensor](), initialize._mark

    def spoil(weight: torch.Tensor, *args: Any, **others: Any) -> None:
        mark(weight, *args, **others)
        weight.data.fill_(float("nan"))
        marked.append(weight)

    monkeypatch.setattr(initialize, "_mark", spoil)
    for name, tensor in weights().items():
        assert tensor.isfinite().all(), name
    assert len(marked) > 10
    assert all(weight.tensor_model_parallel for weight in marked)  # type: ignore[attr-defined]
    assert {weight.partition_dim for weight in marked} == {0, 1}  # type: ignore[attr-defined]
