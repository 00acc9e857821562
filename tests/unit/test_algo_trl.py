"""Our losses against TRL's GRPOTrainer on the same tensors: value, gradient and metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from algo_batches import Sample, pack, random_samples
from r1mega_plugins.algorithms.dapo import DAPO, DAPOConfig
from r1mega_plugins.algorithms.dr_grpo import DrGRPO, DrGRPOConfig
from r1mega_plugins.algorithms.grpo import GRPO, GRPOConfig
from r1mega_plugins.algorithms.gspo import GSPO, GSPOConfig

from r1mega.algo.advantages import group_advantages

pytest.importorskip("trl", reason="TRL, the oracle of these tests, is not installed (extra 'dev')")
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import nanstd

MAX_TOKENS = 12
LENGTHS = (7, 1, 12, 4, 9, 3)


class Replayed(torch.nn.Module):
    """A model that answers with given log-probs and entropies [B, L], as TRL's fused language-model head does."""

    def __init__(self, logprobs: torch.Tensor, entropy: torch.Tensor) -> None:
        super().__init__()
        self.logprobs, self.entropy = logprobs, entropy

    def forward(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(log_probs=self.logprobs, entropy=self.entropy)


def rows(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def trl_loss(samples: Sequence[Sample], *, loss_type: str, level: str = "token", beta: float = 0.0, low: float = 0.2, high: float = 0.2,
             delta: float | None = None, entropy_coefficient: float = 0.0) -> tuple[torch.Tensor, dict[str, float]]:
    """TRL's own `_compute_loss` on a trainer that has what that method reads and nothing else."""
    from accelerate import Accelerator

    trainer = object.__new__(GRPOTrainer)
    model = Replayed(rows([s.logprobs for s in samples]), rows([s.entropy for s in samples]))
    attributes = {
        "model": model, "accelerator": Accelerator(cpu=True), "beta": beta, "epsilon_low": low, "epsilon_high": high, "loss_type": loss_type,
        "importance_sampling_level": level, "max_completion_length": MAX_TOKENS, "current_gradient_accumulation_steps": 1,
        "args": SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1, report_to=[]),
        "aux_loss_enabled": False, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "use_vllm": False,
        "_entropy_bonus_enabled": entropy_coefficient > 0, "use_adaptive_entropy": False, "entropy_coef": entropy_coefficient,
        "_metrics": {"train": defaultdict(list)},
    }
    for name, value in attributes.items():
        setattr(trainer, name, value)
    mask = rows([torch.ones(len(s.logprobs), dtype=torch.int64) for s in samples])
    prompt = torch.ones(len(samples), 2, dtype=torch.int64)
    loss = trainer._compute_loss(model, {
        "prompt_ids": prompt, "prompt_mask": prompt, "completion_ids": mask, "completion_mask": mask,
        "advantages": torch.tensor([s.advantage for s in samples], dtype=model.logprobs.dtype),
        "old_per_token_logps": rows([s.old for s in samples]), "ref_per_token_logps": rows([s.ref for s in samples]),
        "num_items_in_batch": mask.sum(),
    })
    return loss, {name: values[0] for name, values in trainer._metrics["train"].items()}


def our_loss(algorithm: GRPO, samples: Sequence[Sample]) -> tuple[torch.Tensor, dict[str, float]]:
    """The step's loss as a stage computes it, from two unequal micro-batches; metrics per token."""
    lengths = [len(s.logprobs) for s in samples]
    weights = algorithm.weights(lengths)
    parts = [algorithm.loss(*pack(samples[piece], weights[piece], padding=3)) for piece in (slice(0, 2), slice(2, None))]
    metrics = {name: sum(float(part[1][name]) for part in parts) for name in parts[0][1]}
    total = parts[0][0] + parts[1][0]
    return total / algorithm.denominator(lengths), {name: value / metrics["tokens"] for name, value in metrics.items()}


def value_and_gradient(loss: torch.Tensor, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    return loss.detach(), torch.cat(torch.autograd.grad(loss, [s.logprobs for s in samples]))


CASES = {
    "grpo": (GRPO(GRPOConfig(clip_ratio_low=0.2, clip_ratio_high=0.2, kl_coefficient=0.04)), {"loss_type": "grpo", "beta": 0.04}),
    "r1": (GRPO(GRPOConfig()), {"loss_type": "grpo", "beta": 0.001, "low": 10.0, "high": 10.0}),
    "clip higher": (GRPO(GRPOConfig(clip_ratio_low=0.2, clip_ratio_high=0.28, kl_coefficient=0.0)), {"loss_type": "grpo", "high": 0.28}),
    "dual clip": (GRPO(GRPOConfig(clip_ratio_low=0.2, clip_ratio_high=0.2, dual_clip=1.3)), {"loss_type": "grpo", "beta": 0.001, "delta": 1.3}),
    "dr_grpo": (DrGRPO(DrGRPOConfig(max_tokens=MAX_TOKENS)), {"loss_type": "dr_grpo"}),
    "dr_grpo with KL": (DrGRPO(DrGRPOConfig(max_tokens=MAX_TOKENS, kl_coefficient=0.1)), {"loss_type": "dr_grpo", "beta": 0.1}),
    "dapo": (DAPO(DAPOConfig(max_tokens=MAX_TOKENS, overlong_buffer=4)), {"loss_type": "dapo", "high": 0.28}),
    "bnpo with entropy": (GRPO(GRPOConfig(clip_ratio_low=0.2, clip_ratio_high=0.2, aggregation="token", entropy_coefficient=0.01)),
                          {"loss_type": "bnpo", "beta": 0.001, "entropy_coefficient": 0.01}),
    "gspo": (GSPO(GSPOConfig()), {"loss_type": "grpo", "level": "sequence", "low": 3e-4, "high": 4e-4}),
    "gspo, wide, with KL": (GSPO(GSPOConfig(clip_ratio_low=0.1, clip_ratio_high=0.15, kl_coefficient=0.04)),
                            {"loss_type": "grpo", "level": "sequence", "low": 0.1, "high": 0.15, "beta": 0.04}),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_trls(case: str, dtype: torch.dtype, tolerance: float) -> None:
    algorithm, options = CASES[case]
    samples = random_samples(LENGTHS, spread=1.5 if case == "r1" else 0.3, seed=3, dtype=dtype)
    theirs, their_metrics = trl_loss(samples, **options)
    ours, our_metrics = our_loss(algorithm, samples)
    their_value, their_gradient = value_and_gradient(theirs, samples)
    our_value, our_gradient = value_and_gradient(ours, samples)

    assert their_gradient.abs().max() > 0
    torch.testing.assert_close(our_value, their_value, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=tolerance, atol=tolerance)
    if algorithm.needs_reference:
        assert our_metrics["kl"] == pytest.approx(their_metrics["kl"], rel=1e-5)
    assert our_metrics["entropy"] == pytest.approx(their_metrics["entropy"], rel=1e-5)
    if algorithm.ratio_level == "token":  # TRL counts sequences there, we count tokens
        assert our_metrics["clip_fraction_low"] == pytest.approx(their_metrics["clip_ratio/low_mean"], rel=1e-5)
        assert our_metrics["clip_fraction_high"] == pytest.approx(their_metrics["clip_ratio/high_mean"], rel=1e-5)


@pytest.mark.parametrize("case", ["grpo", "r1", "gspo"])
def test_the_cases_reach_the_clip_bounds(case: str) -> None:
    """Otherwise the comparison above would not test them. With epsilon 10 only the upper bound can bind."""
    algorithm, _ = CASES[case]
    _, metrics = our_loss(algorithm, random_samples(LENGTHS, spread=1.5 if case == "r1" else 0.3, seed=3))
    assert 0 < metrics["clip_fraction_high"] < 1
    assert (metrics["clip_fraction_low"] == 0) == (case == "r1")


@pytest.mark.parametrize("normalize_std", [True, False])
def test_advantages_are_trls(normalize_std: bool) -> None:
    """TRL: (r - nanmean) / (nanstd + 1e-4) with a failed reward as NaN; ours with `valid`."""
    rewards = torch.tensor([1.0, 0.0, 2.0, 0.5, torch.nan, 1.0], dtype=torch.float64)
    theirs = rewards - torch.nanmean(rewards)
    if normalize_std:
        theirs = theirs / (nanstd(rewards, dim=0) + 1e-4)
    ours = group_advantages(rewards.nan_to_num(7.0).numpy(), (~rewards.isnan()).numpy(), normalize_std=normalize_std, std_epsilon=1e-4)
    torch.testing.assert_close(torch.from_numpy(ours), theirs.float(), equal_nan=True)
