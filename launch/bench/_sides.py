"""The sides of the train-step benchmark: the models, the batches, and one class per side with the same three methods."""

from __future__ import annotations

import platform as system
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from _bare import BareLoop, Batch
from omegaconf import OmegaConf
from r1mega_plugins.models.deepseek_v3 import DeepSeekV3Config, deepseek_v3

from r1mega import config
from r1mega.policy.architecture import Architecture
from r1mega.policy.build import DTYPES, padded_vocab_size, transformer_engine_available
from r1mega.policy.policy import Policy
from r1mega.rollout.batching import make_microbatch
from r1mega.types import MicroBatch, TrainSequence

CONF = Path(__file__).resolve().parents[2] / "conf" / "model"
SPLITS = (1, 2, 4, 8)  # micro-batches of a step that are tried
PEAKS = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "B200": 2250e12}  # dense bf16 FLOP/s, NVIDIA's data sheets
BILLION = DeepSeekV3Config(
    num_layers=12, hidden_size=2048, ffn_hidden_size=6144, num_attention_heads=16, max_position_embeddings=8192, q_lora_rank=768,
    kv_lora_rank=512, num_moe_experts=16, moe_ffn_hidden_size=768, moe_shared_expert_intermediate_size=768, moe_router_topk=4,
    moe_router_num_groups=4, moe_router_group_topk=2, first_dense_layers=1, mtp_num_layers=0, rope_type="rope", init_method_std=0.02)


@dataclass(frozen=True)
class Precision:
    """A row's number format."""

    name: str
    dtype: Literal["fp32", "bf16"]
    fp8_recipe: str | None = None


def precisions() -> list[Precision]:
    """What this machine can run."""
    if not torch.cuda.is_available():
        return [Precision("fp32", "fp32")]
    found = [Precision("bf16", "bf16")]
    if transformer_engine_available() and torch.cuda.get_device_capability() >= (9, 0):
        found.append(Precision("fp8", "bf16", "blockwise" if torch.cuda.get_device_capability() < (10, 0) else "mxfp8"))
    return found


class Bench:
    """Both models in one process, and the batches they are given."""

    def __init__(self, precision: Precision, tokens: int | None) -> None:
        cuda = torch.cuda.is_available()
        self.precision, self.model_name = precision, "1B" if cuda else "tiny_deepseek_v3"
        self.tokens = tokens or (65536 if cuda else 8192)
        self.vocab_size, self.fixed, self.longest = (32768, 2048, 8192) if cuda else (64, 64, 256)
        architecture = deepseek_v3(BILLION) if cuda else _tiny()
        self.policy = Policy(
            architecture, vocab_size=self.vocab_size, parallel=config.ParallelConfig(), seed=0, training_steps=1000,
            precision=config.PrecisionConfig(params_dtype=precision.dtype, fp8="e4m3" if precision.fp8_recipe else None,
                                             fp8_recipe=precision.fp8_recipe or "blockwise"),  # type: ignore[arg-type]
            optimizer=config.OptimizerConfig(lr=1e-4))
        engine = self.policy.transformer_engine
        self.loops = {
            name: BareLoop(architecture, padded_vocab_size(self.vocab_size, 1), dtype=DTYPES[precision.dtype], transformer_engine=engine,
                           our_layers=ours, fp8_recipe=precision.fp8_recipe)
            for name, ours in (("bare", False), *(() if engine else (("bare_with_our_layers", True),)))}
        for loop in self.loops.values():
            loop.copy_weights(self.policy.chunks[0])
        self.flops = _flops_per_token(architecture, self.vocab_size, self.fixed)
        self.peak = next((peak for name, peak in PEAKS.items() if cuda and name in torch.cuda.get_device_name()), None)

    def sides(self, kind: str) -> dict[str, Side]:
        """Every side of a row, with its batches."""
        ours = self._sequences(equal=kind == "equal")
        bare = ours if kind != "natural" else self._sequences(equal=True)
        return {"ours": OurSide(self.policy, ours)} | {name: BareSide(loop, bare) for name, loop in self.loops.items()}

    def require_equal(self, losses: dict[str, float]) -> None:
        """Both sides must have computed the same thing. Raises `RuntimeError`."""
        tolerance = 1e-4 if self.precision.dtype == "fp32" else 0.02
        worst = max(abs(loss / losses["ours"] - 1) for loss in losses.values())
        if worst > tolerance:
            raise RuntimeError(f"the sides do not compute the same loss (relative difference {worst:.1e}, allowed {tolerance:.0e}): {losses}")

    def utilisation(self, tokens_per_second: float) -> float:
        """Model FLOP utilisation: the model's own products over the chip's dense bf16 peak."""
        assert self.peak is not None
        return tokens_per_second * self.flops / self.peak

    def close(self) -> None:
        """Free the memory."""
        del self.policy, self.loops
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @staticmethod
    def versions() -> dict[str, str]:
        """What was measured."""
        return {"torch": torch.__version__, "megatron-core": version("megatron-core"), "python": system.python_version(),
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}

    def _sequences(self, *, equal: bool) -> list[np.ndarray]:
        """Random tokens whose lengths sum to exactly `self.tokens`: all `self.fixed`, or log-normal around it."""
        random = np.random.default_rng(0)
        lengths: list[int] = []
        while (left := self.tokens - sum(lengths)) > 0:
            drawn = self.fixed if equal else int(np.clip(np.exp(random.normal(np.log(self.fixed * 0.88), 0.5)), 8, self.longest))
            lengths.append(left if left - drawn < 8 else drawn)
        return [random.integers(0, self.vocab_size, length) for length in lengths]


class Side(ABC):
    """One contestant of one row."""

    def __init__(self, sequences: Sequence[np.ndarray]) -> None:
        self.sequences = sequences
        self.tokens = sum(map(len, sequences))
        self.splits = 1
        self._cut()

    @abstractmethod
    def step(self) -> float:
        """One update; the mean loss."""

    @abstractmethod
    def _cut(self) -> None:
        """Make `self.splits` micro-batches of the sequences."""

    @property
    def microbatch(self) -> int:
        """Tokens of one micro-batch."""
        return self.tokens // self.splits

    def check(self) -> float:
        """The loss of the first update, which also warms everything up."""
        return self.step()

    def timed(self) -> float:
        """Seconds of one update."""
        _synchronize()
        began = time.perf_counter()
        self.step()
        _synchronize()
        return time.perf_counter() - began

    def choose_microbatch(self) -> None:
        """Keep the split that is fastest; one that does not fit in memory is out."""
        found: dict[int, float] = {}
        for splits in SPLITS:
            if splits > len(self.sequences):
                break
            self.splits = splits
            self._cut()
            try:
                found[splits] = min(self.timed() for _ in range(2))
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
        self.splits = min(found, key=lambda splits: found[splits])
        self._cut()

    def parts(self) -> list[list[np.ndarray]]:
        """The sequences, dealt to micro-batches of about equal token counts."""
        parts: list[list[np.ndarray]] = [[] for _ in range(self.splits)]
        done = 0
        for sequence in self.sequences:
            parts[min(done * self.splits // self.tokens, self.splits - 1)].append(sequence)
            done += len(sequence)
        return [part for part in parts if part]


class OurSide(Side):
    """`Policy.train_step` on packed rows."""

    def __init__(self, policy: Policy, sequences: Sequence[np.ndarray]) -> None:
        self.policy = policy
        super().__init__(sequences)

    def _cut(self) -> None:
        self.batches: list[MicroBatch] = []
        for part in self.parts():
            sequences = [TrainSequence(str(i), tokens, np.ones(len(tokens), np.float32)) for i, tokens in enumerate(part)]
            self.batches.append(make_microbatch(sequences, self.policy.pad_multiple))

    def step(self) -> float:
        """One update."""
        return self.policy.train_step(self.batches, _cross_entropy).loss


class BareSide(Side):
    """The bare loop on rectangles, padded to the longest sequence of the micro-batch."""

    def __init__(self, loop: BareLoop, sequences: Sequence[np.ndarray]) -> None:
        self.loop = loop
        super().__init__(sequences)

    def _cut(self) -> None:
        self.batches = [_rectangle(part) for part in self.parts()]

    def step(self) -> float:
        """One update."""
        return self.loop.train_step(self.batches)


def _rectangle(sequences: Sequence[np.ndarray]) -> Batch:
    shape = len(sequences), max(map(len, sequences))
    tokens, labels, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
        labels[row, : len(sequence) - 1] = sequence[1:]
        mask[row, : len(sequence) - 1] = 1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    positions = torch.arange(shape[1], device=device).expand(shape)
    return Batch(torch.from_numpy(tokens).to(device), torch.from_numpy(labels).to(device), positions, torch.from_numpy(mask).to(device))


def _cross_entropy(logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    del entropy
    return -(logprobs * batch.weights).sum(), {}


def _tiny() -> Architecture:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / "tiny_deepseek_v3.yaml"))
    del values["name"]
    return deepseek_v3(DeepSeekV3Config(**values))


def _flops_per_token(a: Architecture, vocab_size: int, length: int) -> float:
    """Multiply-adds of the model's products for one token of a sequence of `length`, forward and backward, times two: without recomputation."""
    assert a.mla is not None
    assert a.moe is not None
    m, e, h, heads = a.mla, a.moe, a.hidden_size, a.num_attention_heads
    qk = m.qk_head_dim + m.qk_pos_emb_head_dim
    query = h * m.q_lora_rank + m.q_lora_rank * heads * qk if m.q_lora_rank else h * heads * qk
    attention = (query + h * (m.kv_lora_rank + m.qk_pos_emb_head_dim) + m.kv_lora_rank * heads * (m.qk_head_dim + m.v_head_dim)
                 + heads * m.v_head_dim * h + heads * (qk + m.v_head_dim) * length / 2)
    expert = 3 * h * (e.moe_ffn_hidden_size * e.moe_router_topk + (e.moe_shared_expert_intermediate_size or 0)) + h * e.num_moe_experts
    layers = sum(attention + (expert if kind else 3 * h * a.ffn_hidden_size) for kind in a.moe_layer_freq)
    return 6 * (layers + h * vocab_size)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
