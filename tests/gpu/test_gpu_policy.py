"""The policy on one GPU: bf16 training, Transformer Engine against local layers, FP8, packing, generation, memory, checkpoints.

These tests have been run by nobody on a GPU yet; their logic was run on a CPU with the local layers in fp32. The tolerances are what bf16
rounding (2^-8 relative) leaves after two layers, and may need a second look.
"""

from __future__ import annotations

from pathlib import Path

import gpu_policies as policies
import numpy as np
import pytest
import torch

from r1mega.config import PrecisionConfig
from r1mega.types import Completion, GenerationRequest, SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")]

LENGTHS = ((130, 70, 55), (200, 33, 22))
LOCAL = PrecisionConfig(params_dtype="bf16", transformer_engine=False)


def _needs_transformer_engine(minimum: str = "1.0") -> None:
    engine = pytest.importorskip("transformer_engine", reason="Transformer Engine is not installed")
    from packaging.version import Version

    if Version(engine.__version__) < Version(minimum):
        pytest.skip(f"needs Transformer Engine {minimum}, found {engine.__version__}")


def _losses(precision: PrecisionConfig, steps: int = 20) -> list[float]:
    policy = policies.build(precision, lr=1e-3)
    batches = policies.batches(policy, *LENGTHS)
    return [policy.train_step(batches, policies.cross_entropy).loss for _ in range(steps)]


def test_bf16_training_learns_its_batch() -> None:
    losses = _losses(policies.BF16)
    assert losses[0] == pytest.approx(torch.tensor(float(policies.VOCAB)).log().item(), abs=0.5)
    assert losses[-1] < losses[0] - 1.0, f"the loss on one fixed batch did not fall: {losses}"


def test_bf16_on_the_gpu_starts_where_fp32_does() -> None:
    found = {}
    for name, precision in {"bf16": LOCAL, "fp32": PrecisionConfig(transformer_engine=False)}.items():
        policy = policies.build(precision)
        (batch,) = policies.batches(policy, LENGTHS[0])
        found[name] = policy.logprobs([batch])[0][0]
    assert policies.mean_difference(found["bf16"], found["fp32"], batch) < 0.02


def test_transformer_engine_layers_agree_with_local_layers() -> None:
    _needs_transformer_engine()
    engine = policies.build(policies.BF16)
    assert engine.transformer_engine
    (batch,) = policies.batches(engine, LENGTHS[0])
    with_engine = engine.logprobs([batch])[0][0]
    local = policies.build(LOCAL)
    _copy_from_engine(engine.chunks[0], local.chunks[0])
    assert policies.mean_difference(local.logprobs([batch])[0][0], with_engine, batch) < 0.02


@torch.no_grad()
def _copy_from_engine(engine: torch.nn.Module, local: torch.nn.Module) -> None:
    """The two layer sets name their norms and experts differently."""
    theirs = dict(engine.named_parameters())
    renames = (("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight"),
               ("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"),
               ("q_layernorm.weight", "linear_q_up_proj.layer_norm_weight"),
               ("kv_layernorm.weight", "linear_kv_up_proj.layer_norm_weight"))
    for name, parameter in local.named_parameters():
        candidates = [name, *(name.replace(old, new) for old, new in renames)]
        if ".local_experts." in name:
            before, after = name.split(".local_experts.")
            expert, rest = after.split(".", 1)
            candidates.append(f"{before}.{rest}{expert}")  # grouped: experts.linear_fc1.weight3
        source = next((theirs[candidate] for candidate in candidates if candidate in theirs), None)
        assert source is not None, f"the Transformer Engine model has nothing for '{name}'; it has {sorted(theirs)}"
        parameter.copy_(source)


def test_fp8_loss_stays_close_to_bf16() -> None:
    _needs_transformer_engine("2.3")
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("blockwise FP8 needs a Hopper GPU")
    plain = _losses(policies.BF16)
    fp8 = _losses(PrecisionConfig(params_dtype="bf16", fp8="e4m3", fp8_recipe="blockwise"))
    worst = max(abs(a - b) / a for a, b in zip(plain, fp8, strict=True))
    assert worst < 0.03, f"FP8 is {worst:.1%} away from bf16; bf16 {plain}, fp8 {fp8}"


def test_packed_sequences_score_as_separate_ones() -> None:
    policy = policies.build(policies.BF16)
    (packed,) = policies.batches(policy, LENGTHS[0])
    together = policy.logprobs([packed])[0][0]
    start = 0
    for length in LENGTHS[0]:
        (alone,) = policies.batches(policy, (length,))
        alone.tokens[:length] = packed.tokens[start: start + length]
        alone.labels[:length] = packed.labels[start: start + length]
        separate = policy.logprobs([alone])[0][0]
        counts = packed.weights[start: start + length] > 0
        difference = (together[start: start + length] - separate[:length]).abs()[counts]
        assert float(difference.mean()) < 0.01, f"a sequence of {length} tokens scores differently beside others: {difference.max():.3f}"
        start += length


def test_generation_agrees_with_the_trainer() -> None:
    from r1mega.policy.generate import Engine
    from r1mega.rollout.batching import make_microbatch, unpack
    from r1mega.types import TrainSequence

    policy = policies.build(policies.BF16)
    finished: list[Completion] = []
    prompt_of = {f"p{prompt}#{sample}": tuple(range(prompt + 1, prompt + 12)) for prompt in range(4) for sample in range(3)}
    requests = [GenerationRequest(name, tokens, SamplingParams(max_tokens=20 + seed), seed)
                for seed, (name, tokens) in enumerate(prompt_of.items())]
    Engine(policy, max_slots=8).generate(requests, str, finished.append)
    assert {completion.id for completion in finished} == {request.id for request in requests}
    rows = [np.array([*prompt_of[completion.id], *completion.tokens]) for completion in finished]
    sequences = [TrainSequence(completion.id, row, np.ones(len(row), np.float32)) for completion, row in zip(finished, rows, strict=True)]
    batch = make_microbatch(sequences, policy.pad_multiple)
    scored = unpack(policy.logprobs([batch])[0][0], batch)
    differences = [np.array(c.logprobs) - row[-len(c.tokens):] for c, row in zip(finished, scored, strict=True)]
    assert np.abs(np.concatenate(differences)).mean() < 0.02


def test_memory_does_not_grow_with_steps() -> None:
    policy = policies.build(policies.BF16, lr=1e-4)
    batches = policies.batches(policy, *LENGTHS)
    for _ in range(3):
        policy.train_step(batches, policies.cross_entropy)
    before = torch.cuda.memory_allocated()
    for _ in range(10):
        policy.train_step(batches, policies.cross_entropy)
        policy.logprobs(batches)
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_a_checkpoint_continues_bit_for_bit(tmp_path: Path) -> None:
    from r1mega.policy import checkpoint

    policy = policies.build(policies.BF16, lr=1e-3)
    batches = policies.batches(policy, *LENGTHS)
    for _ in range(2):
        policy.train_step(batches, policies.cross_entropy)
    checkpoint.save(policy, tmp_path, 2, {"cursor": 7}, keep_last=1, before_rename=lambda: None)
    expected = policy.logprobs(batches)[0][0]
    fresh = policies.build(policies.BF16, lr=1e-3, seed=5)
    assert not torch.equal(fresh.logprobs(batches)[0][0], expected)
    loaded = checkpoint.load_latest(fresh, tmp_path)
    assert loaded is not None
    assert fresh.version == 2
    assert torch.equal(fresh.logprobs(batches)[0][0], expected)
    continued, undisturbed = (p.train_step(batches, policies.cross_entropy) for p in (fresh, policy))
    assert continued.loss == undisturbed.loss
    assert continued.grad_norm == pytest.approx(undisturbed.grad_norm, rel=1e-3)  # atomic additions in backward kernels have no fixed order
