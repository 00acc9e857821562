"""The sequence-wise balance loss: Megatron's on one sequence, the sum over sequences on a packed row, none of padding."""

from __future__ import annotations

from typing import Any

import policy_models as models
import pytest
import torch
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter

from r1mega.config import OptimizerConfig, ParallelConfig, PrecisionConfig
from r1mega.errors import ConfigError
from r1mega.policy.balance import SequenceRouter, balance_loss
from r1mega.policy.build import TrainingTerms, transformer_config
from r1mega.policy.packed import packed_batch

SGD = OptimizerConfig(optimizer="sgd", lr=0.1, weight_decay=0.0, clip_grad=1e9, use_distributed_optimizer=False)
TERMS = TrainingTerms(moe_aux_loss_coeff=0.5, mtp_loss_scaling_factor=0.3, mtp_detach=False)
LENGTHS = (40, 5, 17, 1, 33, 2)


def balance_alone(logprobs: torch.Tensor, entropy: torch.Tensor, batch: Any) -> Any:
    """The likelihood's own gradient is 0."""
    loss, sums = models.likelihood(logprobs, entropy, batch)
    return loss * 0.0, sums


def gradients(batches: list[Any], precision: PrecisionConfig | None = None) -> dict[str, torch.Tensor]:
    policy = models.build(models.deepseek(mtp_num_layers=1), optimizer=SGD, terms=TERMS, precision=precision)
    policy.train_step(batches, balance_alone)
    return {name: parameter.main_grad.clone() for name, parameter in policy.chunks[0].named_parameters()}


def scores_of(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised scores [count, 8] and the map of the two highest."""
    scores = torch.rand(count, 8, generator=torch.Generator().manual_seed(seed))
    scores = (scores / scores.sum(1, keepdim=True)).requires_grad_()
    return scores, torch.zeros(count, 8).scatter(1, scores.topk(2).indices, 1).bool()


def test_one_sequence_has_the_published_loss() -> None:
    """Equations 17-20, written out."""
    policy = models.build(models.deepseek())
    scores, routing_map = scores_of(13, 0)
    group = policy.chunks[0].decoder.layers[1].mlp.router.tp_cp_group
    mean_loss = sum(8 / (2 * 13) * float(routing_map[:, i].sum()) * float(scores[:, i].mean()) for i in range(8))
    found = balance_loss(scores, routing_map, (13,), torch.zeros(13, dtype=torch.int64), 2, group)
    assert float(found) == pytest.approx(13 * mean_loss, rel=1e-5)


def test_one_sequence_has_megatrons_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient that Megatron's own router attaches for a row of one sequence."""
    policy = models.build(models.deepseek(), optimizer=SGD, terms=TERMS)
    router: Any = policy.chunks[0].decoder.layers[1].mlp.router
    assert isinstance(router, SequenceRouter)
    monkeypatch.setattr(MoEAuxLossAutoScaler, "main_loss_backward_scale", torch.ones(1))  # the schedule's, of the whole process
    found = []
    for apply in (SequenceRouter._apply_seq_aux_loss, TopKRouter._apply_seq_aux_loss):
        scores, routing_map = scores_of(13, 1)
        router.batch = packed_batch([13], torch.arange(13), thd=False)
        probs = torch.ones(13, 8, requires_grad=True)
        apply(router, probs, scores, routing_map, 13, 1).sum().backward()
        found.append(scores.grad)
    assert found[0].abs().min() > 0
    torch.testing.assert_close(found[0], found[1])


def test_a_packed_row_has_the_sum_over_its_sequences() -> None:
    parts = models.sequences(*LENGTHS)
    packed, apart = gradients([models.batch_of(parts, 64)]), gradients([models.batch_of([part]) for part in parts])
    assert packed["decoder.layers.1.mlp.router.weight"].norm() > 0
    assert any(grad.any() for name, grad in packed.items() if name.startswith("mtp.") and name.endswith("router.weight"))
    for name, grad in apart.items():
        assert float((packed[name] - grad).norm()) <= 1e-5 * float(grad.norm()) + 1e-9, name


@pytest.mark.parametrize("precision", [PrecisionConfig(recompute_granularity="full"),
                                       PrecisionConfig(recompute_granularity="selective", recompute_modules=["moe"])])
def test_recomputation_knows_the_sequences(precision: PrecisionConfig) -> None:
    batches = [models.batch_of(models.sequences(*lengths), 16) for lengths in (LENGTHS, (9, 9, 20))]
    plain, again = gradients(batches), gradients(batches, precision)
    for name, grad in plain.items():
        assert float((again[name] - grad).norm()) <= 1e-5 * float(grad.norm()) + 1e-9, name


def test_recomputing_experts_alone_in_a_pipeline_is_refused() -> None:
    precision = PrecisionConfig(recompute_granularity="selective", recompute_modules=["moe"])
    with pytest.raises(ConfigError, match=r"recompute_modules=\[\.\.\., moe\] cannot be with moe_aux_loss_coeff above 0"):
        transformer_config(models.deepseek(), ParallelConfig(pipeline_model_parallel_size=2), precision, TERMS, transformer_engine=False)
