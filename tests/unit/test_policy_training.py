"""What a train step and a log-prob pass do and do not touch: packing, expert bias, MTP, recomputation, optimizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import policy_models as models
import pytest
import torch

from r1mega.config import OptimizerConfig, PrecisionConfig
from r1mega.errors import ConfigError, R1MegaError
from r1mega.policy.build import TrainingTerms
from r1mega.rollout.batching import unpack

SGD = OptimizerConfig(optimizer="sgd", lr=0.1, weight_decay=0.0, clip_grad=1e9, use_distributed_optimizer=False)
LENGTHS = (40, 5, 17, 1, 33, 2)


def weights(policy: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.chunks[0].named_parameters()}


def gradients(policy: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.main_grad.clone() for name, parameter in policy.chunks[0].named_parameters()}


def buffers(policy: Any, ending: str) -> list[torch.Tensor]:
    return [buffer.clone() for name, buffer in policy.chunks[0].named_buffers() if name.endswith(ending)]


def worst(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> tuple[float, str]:
    """The largest ||a - b|| / ||b|| over all tensors."""
    assert a.keys() == b.keys()
    return max((float((a[name] - b[name]).norm() / b[name].norm().clamp_min(1e-12)), name) for name in b)


@pytest.mark.parametrize("architecture", [models.gqa(qk_layernorm=True), models.deepseek(mtp_num_layers=2)], ids=["gqa", "mla-moe-mtp"])
def test_packed_equals_separate(architecture: Any) -> None:
    """Log-probs, entropy and both MTP depths at every position that has a label, and all gradients."""
    terms = TrainingTerms(mtp_loss_scaling_factor=0.5 if architecture.mtp_num_layers else 0.0, mtp_detach=False)
    policy = models.build(architecture, optimizer=SGD, terms=terms)
    parts = models.sequences(*LENGTHS)
    start = weights(policy)
    packed, apart = models.batch_of(parts, 16), [models.batch_of([part]) for part in parts]
    together, alone = models.rows(policy, packed).detach(), [models.rows(policy, batch).detach() for batch in apart]
    assert len(together) == 2 + architecture.mtp_num_layers
    for depth, row in enumerate(together):
        shift = max(0, depth - 1)  # MTP depth k has no label at the last k + 1 positions
        expected = [unpack(rows[depth], batch)[0] for rows, batch in zip(alone, apart, strict=True)]
        for part, ours, theirs in zip(parts, unpack(row, packed), expected, strict=True):
            end = max(0, len(part) - shift)
            np.testing.assert_allclose(ours[:end], theirs[:end], atol=1e-5, err_msg=f"output {depth} of the sequence of {len(part)}")
    one = policy.train_step([packed], models.likelihood)
    of_packed = gradients(policy)
    with torch.no_grad():
        for name, parameter in policy.chunks[0].named_parameters():
            parameter.copy_(start[name])
    separate = policy.train_step(apart, models.likelihood)
    assert separate.loss == pytest.approx(one.loss, rel=1e-6)
    assert separate.sums == pytest.approx(dict(one.sums), rel=1e-6)
    distance, name = worst(of_packed, gradients(policy))
    assert distance < 1e-5, f"gradient of {name} differs by {distance:.1e}"


def test_gradient_is_the_sum_over_one_global_count() -> None:
    """Against autograd on the bare model: the sum of all losses divided once by the number of loss tokens, whatever the micro-batches."""
    policy = models.build(models.gqa(), optimizer=SGD)
    parts = models.sequences(*LENGTHS)
    batches = [models.batch_of(parts[:1]), models.batch_of(parts[1:])]
    tokens = sum(float((batch.weights > 0).sum()) for batch in batches)
    before = weights(policy)
    bare = models.build(models.gqa())
    total = sum(models.likelihood(*models.rows(bare, batch), batch)[0] for batch in batches) / tokens
    total.backward()
    result = policy.train_step(batches, models.likelihood)
    assert result.loss == pytest.approx(float(total), rel=1e-6)
    assert result.sums["loss_tokens"] == tokens
    expected = {name: parameter.grad for name, parameter in bare.chunks[0].named_parameters()}
    assert worst(gradients(policy), expected)[0] < 1e-5
    assert result.grad_norm == pytest.approx(float(torch.cat([g.flatten() for g in expected.values()]).norm()), rel=1e-5)
    moved = {name: before[name] - 0.1 * grad for name, grad in expected.items()}
    assert worst(weights(policy), moved)[0] < 1e-5, "one SGD step is w - lr * gradient"


def test_expert_counters_and_bias() -> None:
    """A log-prob pass moves nothing; training leaves the bias alone unless a rate is given, then it goes against the load by the rate."""
    batch = models.batch_of(models.sequences(60, 30))
    frozen = models.build(models.deepseek(), optimizer=SGD)
    bias = buffers(frozen, "expert_bias")
    frozen.logprobs([batch])
    assert not any(counter.any() for counter in buffers(frozen, "local_tokens_per_expert")), "a log-prob pass moved the counters"
    frozen.train_step([batch], models.likelihood)
    assert all(torch.equal(a, b) for a, b in zip(bias, buffers(frozen, "expert_bias"), strict=True)), "the bias is frozen by default"

    moving = models.build(models.deepseek(), optimizer=SGD, terms=TrainingTerms(moe_router_bias_update_rate=1e-3))
    models.rows(moving, batch)  # with gradients enabled this is what training counts
    (load,) = (counter for counter in buffers(moving, "local_tokens_per_expert"))
    assert float(load.sum()) == len(batch.tokens) * 2
    moving.chunks[0].decoder.layers[1].mlp.router.local_tokens_per_expert.zero_()
    moving.train_step([batch], models.likelihood)
    (after,) = buffers(moving, "expert_bias")
    torch.testing.assert_close(after, bias[0] + 1e-3 * torch.sign(load.float().mean() - load))
    assert not buffers(moving, "local_tokens_per_expert")[0].any(), "the counters start again after a step"


@pytest.mark.parametrize(("granularity", "modules"), [("full", []), ("selective", ["core_attn"]), ("selective", ["mla_up_proj", "layernorm"]),
                                                       ("selective", ["moe", "mlp"])])
def test_recomputation_changes_no_gradient(granularity: Any, modules: list[str]) -> None:
    batches = [models.batch_of(models.sequences(*LENGTHS)), models.batch_of(models.sequences(9, 9, seed=1))]
    found = []
    for precision in (PrecisionConfig(), PrecisionConfig(recompute_granularity=granularity, recompute_modules=modules)):
        policy = models.build(models.deepseek(mtp_num_layers=1), optimizer=SGD, precision=precision,
                              terms=TrainingTerms(mtp_loss_scaling_factor=0.3, moe_router_bias_update_rate=1e-3))
        result = policy.train_step(batches, models.likelihood)
        found.append((result.loss, gradients(policy), buffers(policy, "expert_bias")))
    (plain_loss, plain, plain_bias), (loss, recomputed, bias) = found
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    assert worst(recomputed, plain)[0] < 1e-5
    assert all(torch.equal(a, b) for a, b in zip(bias, plain_bias, strict=True)), "recomputation counted the expert load twice"


def mtp_gradients(factor: float, *, detach: bool, batch: Any) -> tuple[dict[str, torch.Tensor], Any]:
    terms = TrainingTerms(mtp_loss_scaling_factor=factor, mtp_detach=detach)
    policy = models.build(models.deepseek(mtp_num_layers=1), optimizer=SGD, terms=terms)
    result = policy.train_step([batch], models.likelihood)
    return gradients(policy), result


def test_detached_mtp_loss_trains_the_mtp_layer_alone() -> None:
    batch = models.batch_of(models.sequences(*LENGTHS))
    without, _ = mtp_gradients(0.0, detach=True, batch=batch)
    detached, result = mtp_gradients(0.3, detach=True, batch=batch)
    attached, _ = mtp_gradients(0.3, detach=False, batch=batch)
    trunk = {name for name in without if not name.startswith("mtp.")}
    assert not any(grad.any() for name, grad in without.items() if name not in trunk)
    untouched = [name for name, grad in detached.items() if name not in trunk and not grad.any()]
    assert all("experts.local_experts" in name for name in untouched), f"the MTP loss does not reach {untouched}"
    assert all(torch.equal(detached[name], without[name]) for name in trunk), "the detached MTP loss reached the trunk or the head"
    assert not torch.equal(attached["embedding.word_embeddings.weight"], without["embedding.word_embeddings.weight"])
    assert result.sums["mtp_loss"] > 0


def test_mtp_loss_is_masked_to_responses() -> None:
    """The MTP loss is that of response tokens alone: the sum over tokens t + 2 with weight, computed here from the MTP log-probs themselves."""
    parts = models.sequences(20, 7)
    batch = models.batch_of(parts)
    policy = models.build(models.deepseek(mtp_num_layers=1), optimizer=SGD, terms=TrainingTerms(mtp_loss_scaling_factor=0.3))
    row = models.rows(policy, batch)[2].detach()
    result = policy.train_step([batch], models.likelihood)
    expected, start = 0.0, 0
    for part in parts:
        expected -= sum(float(row[start + t]) for t in range(len(part) - 2) if part.weights[t + 2] > 0)
        start += len(part)
    assert result.sums["mtp_loss"] == pytest.approx(expected, rel=1e-5)


def test_sgd_with_the_distributed_optimizer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"use_distributed_optimizer=false"):
        models.build(models.gqa(), optimizer=OptimizerConfig(optimizer="sgd"))


def poisoned(how: float) -> Any:
    def loss(logprobs: torch.Tensor, entropy: torch.Tensor, batch: Any) -> Any:
        total, sums = models.likelihood(logprobs, entropy, batch)
        return total + how * logprobs[3] if batch.lengths[0] == 9 else total, sums

    return loss


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("how", [float("nan"), float("inf"), 3e38])
def test_a_gradient_that_is_not_finite_changes_nothing(how: float, precision: Any) -> None:
    """One bad sample in a good batch: afterwards all is as if that step had not been."""
    good, bad = ([models.batch_of(models.sequences(*lengths))] for lengths in (LENGTHS, (9, 30)))
    adam = OptimizerConfig(lr=1e-2, lr_warmup_steps=4)
    found = []
    for steps in ((good, bad, good), (good, good)):
        policy = models.build(models.deepseek(), optimizer=adam, precision=PrecisionConfig(params_dtype=precision),
                              terms=TrainingTerms(moe_router_bias_update_rate=1e-3))
        results = [policy.train_step(batches, poisoned(how)) for batches in steps]
        found.append((weights(policy), results, policy.skipped_updates, buffers(policy, "expert_bias")))
    (with_bad, three, skipped, bias), (without, two, none, expected_bias) = found
    assert [result.updated for result in three] == [True, False, True]
    assert not np.isfinite(three[1].grad_norm)
    assert (skipped, none) == (1, 0)
    assert (three[2].lr, three[2].grad_norm) == (two[1].lr, two[1].grad_norm)
    assert all(torch.equal(with_bad[name], without[name]) for name in without), "the skipped update left a trace"
    assert all(torch.equal(a, b) for a, b in zip(bias, expected_bias, strict=True)), "the skipped update moved the expert bias"


def test_skipped_updates_in_a_row_end_the_stage() -> None:
    good, bad = ([models.batch_of(models.sequences(*lengths))] for lengths in (LENGTHS, (9, 30)))
    policy = models.build(models.gqa(), optimizer=OptimizerConfig(max_nonfinite_updates=2))
    loss = poisoned(float("nan"))
    assert [policy.train_step(batches, loss).updated for batches in (bad, good, bad, good)] == [False, True, False, True]
    policy.train_step(bad, loss)
    with pytest.raises(R1MegaError, match=r"2 updates in a row were skipped .* nan \(optimizer\.max_nonfinite_updates=2\)"):
        policy.train_step(bad, loss)
    assert policy.skipped_updates == 4
