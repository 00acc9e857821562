"""How many floating-point operations a model spends, from its shape and from what it reads and writes. No torch, no megatron.

Counted are the matrix products, a multiply and an add each: those with weights, and attention's two (query times key, probability times value) over
the pairs that causality allows, by the real lengths of sequences. Of a mixture of experts only the experts that a token is sent to count. Norms,
softmax, rotary embedding and the optimizer are not counted; nor are padding, recomputation and other work that an implementation adds. These are the
model FLOPs of Megatron-LM (arXiv 2104.04473, appendix) and PaLM (arXiv 2204.02311, appendix B); a backward pass is two forward passes (arXiv
2001.08361, section 2.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from r1mega.policy.architecture import Architecture
from r1mega.types import ScoredGroup

if TYPE_CHECKING:
    from r1mega.policy.policy import Policy

Kind = Literal["training", "inference", "generation", "evaluation"]
KINDS: tuple[Kind, ...] = ("training", "inference", "generation")  # what `model_flops` is the sum of; evaluation stands apart
BACKWARD = 2  # forward passes that a backward pass costs


@dataclass(frozen=True)
class Work:
    """What the cost of a forward pass is linear in. Whole numbers that add up over sequences, passes and replicas, exact below 2^53."""

    tokens: float = 0  # through the layers
    pairs: float = 0  # of a token and one that it attends to, itself included
    outputs: float = 0  # positions whose logits (or value) are computed

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.pairs + other.pairs, self.outputs + other.outputs)


def sequences(lengths: Iterable[int]) -> Work:
    """Whole sequences of these lengths, an output at every token: a training or a log-prob pass."""
    tokens = pairs = 0
    for length in lengths:
        tokens += length
        pairs += _causal(length)
    return Work(tokens, pairs, tokens)


def generation(groups: Sequence[ScoredGroup]) -> Work:
    """Completions that were generated with a cache of keys and values.

    A group's prompt is read once for all its samples. The first token of a completion comes of the prompt's last position; its last token is drawn
    and not read. Every token attends to what stands before it in its own sequence.
    """
    work = Work()
    for group in groups:
        before = len(group.group.prompt.tokens)
        work += Work(before, _causal(before), 1)
        for completion in group.group.completions:
            read = max(0, len(completion.tokens) - 1)
            work += Work(read, read * before + _causal(read), read)
    return work


def _causal(length: int) -> int:
    return length * (length + 1) // 2


@dataclass(frozen=True)
class Cost:
    """FLOPs of a forward pass for each unit of `Work`."""

    token: int
    pair: int
    output: int

    @classmethod
    def of(cls, architecture: Architecture, outputs: int, *, mtp: bool = False) -> Cost:
        """`outputs`: the vocabulary's size, or 1 for a scalar head. With `mtp` the multi-token-prediction layers are computed too."""
        a = architecture
        moe = sum(a.moe_layer_freq)
        last = _experts(a) if moe else _gated(a.hidden_size, a.ffn_hidden_size)  # an MTP layer is made like the last one
        token = a.num_layers * _projections(a) + (a.num_layers - moe) * _gated(a.hidden_size, a.ffn_hidden_size) + (moe * _experts(a) if moe else 0)
        depths = a.mtp_num_layers if mtp else 0
        token += depths * (2 * a.hidden_size * a.hidden_size + _projections(a) + last)
        return cls(2 * token, 2 * (a.num_layers + depths) * _pair(a), 2 * (1 + depths) * a.hidden_size * outputs)

    def forward(self, work: Work) -> float:
        return float(self.token * work.tokens + self.pair * work.pairs + self.output * work.outputs)


def _heads(a: Architecture) -> tuple[int, int]:
    """Sizes of all heads' keys (or queries) and of all heads' values."""
    if a.mla:
        return a.num_attention_heads * (a.mla.qk_head_dim + a.mla.qk_pos_emb_head_dim), a.num_attention_heads * a.mla.v_head_dim
    size = a.num_attention_heads * (a.kv_channels or a.hidden_size // a.num_attention_heads)
    return size, size


def _pair(a: Architecture) -> int:
    """Multiply-adds of one layer's attention for a (query, key) pair."""
    return sum(_heads(a))


def _projections(a: Architecture) -> int:
    """Multiply-adds of one layer's attention with weights, for a token."""
    h, (queries, values) = a.hidden_size, _heads(a)
    if a.mla is None:
        return h * (queries + 2 * queries * (a.num_query_groups or a.num_attention_heads) // a.num_attention_heads) + values * h
    m = a.mla
    query = h * queries if m.q_lora_rank is None else h * m.q_lora_rank + m.q_lora_rank * queries
    latent = h * (m.kv_lora_rank + m.qk_pos_emb_head_dim) + m.kv_lora_rank * (a.num_attention_heads * m.qk_head_dim + values)
    return query + latent + values * h


def _gated(hidden: int, inner: int) -> int:
    """Multiply-adds of a gated feed-forward layer (gate, up, down) for a token."""
    return 3 * hidden * inner


def _experts(a: Architecture) -> int:
    """Multiply-adds of a layer of experts for a token: the router, the chosen experts, the shared one."""
    assert a.moe is not None
    moe, h = a.moe, a.hidden_size
    return h * moe.num_moe_experts + moe.moe_router_topk * _gated(h, moe.moe_ffn_hidden_size) + _gated(h, moe.moe_shared_expert_intermediate_size or 0)


@dataclass
class Meter:
    """Counts what a stage's model spends. `add` as work is done, `step` once a step; `totals` goes into checkpoints and comes back with `resume`."""

    passes: Cost  # of log-prob passes and generation
    training: Cost
    values: Cost  # of passes that end in the scalar head
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*KINDS, "evaluation"), 0.0))
    _open: dict[str, float] = field(default_factory=dict)  # since the last step

    @classmethod
    def of(cls, policy: Policy) -> Meter:
        architecture, options = policy.architecture, policy.options
        values = Cost.of(architecture, 1)
        passes = Cost.of(architecture, options.vocab_size)
        training = values if options.values else Cost.of(architecture, options.vocab_size, mtp=options.mtp)
        return cls(values if options.values else passes, training, values)

    def resume(self, totals: Mapping[str, float] | None) -> None:
        """Go on from a checkpoint's totals; None: from nothing."""
        self.totals |= totals or {}

    def add(self, kind: Kind, work: Work, *, values: bool = False) -> None:
        """Count work of all replicas. With `values` its passes end in the scalar head."""
        spent = self.cost(work, training=kind == "training", values=values)
        self.totals[kind] += spent
        if kind != "evaluation":
            self._open[kind] = self._open.get(kind, 0.0) + spent

    def cost(self, work: Work, *, training: bool = False, values: bool = False) -> float:
        """FLOPs of work, which is not counted by this."""
        if training:
            return (1 + BACKWARD) * self.training.forward(work)
        return (self.values if values else self.passes).forward(work)

    @property
    def model_flops(self) -> float:
        """All but evaluation."""
        return sum(self.totals[kind] for kind in KINDS)

    def step(self) -> dict[str, float]:
        """The metrics of what was added since the last step: `flops`, and its parts as far as the stage has them."""
        spent, self._open = self._open, {}
        parts = {f"flops_{kind}": spent.get(kind, 0.0) for kind in KINDS if self.totals[kind]}
        return {"flops": sum(parts.values())} | parts

    def metrics(self) -> dict[str, float]:
        """A stage's closing metrics: `model_flops`, its parts, and `flops_evaluation` beside it."""
        return {"model_flops": self.model_flops} | {f"flops_{kind}": self.totals[kind] for kind in (*KINDS, "evaluation")}
