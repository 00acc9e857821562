"""Rollouts a person can read: a JSON Lines file per stage, and a short text for the console."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r1mega.observe.jsonl import append_step
from r1mega.types import ScoredGroup


def write_samples(path: Path, step: int, groups: Sequence[ScoredGroup], limit: int, advantages: Sequence[np.ndarray] | None = None) -> None:
    """Append at most `limit` samples of a step to `path`, one JSON object a line; a repeated step replaces its earlier lines.

    Fields: step, id, prompt (as the model saw it), completion, answer, reward (null when the reward failed), parts, length (tokens),
    finish_reason and, if `advantages` (one array [G] per group) are given, advantage (null when the sample gives no gradient).
    """
    append_step(path, step, [_record(groups[g], k, None if advantages is None else float(advantages[g][k])) for g, k in _pick(groups, limit)])


def sample_records(groups: Sequence[ScoredGroup], limit: int) -> list[dict[str, Any]]:
    """At most `limit` samples of the groups as `write_samples` writes them, without the step and the advantage."""
    return [_record(groups[g], k, None) for g, k in _pick(groups, limit)]


def render_samples(groups: Sequence[ScoredGroup], limit: int) -> str:
    """At most `limit` samples as plain text, best and worst of a group side by side; long completions lose their middle."""
    blocks = []
    for g, k in _pick(groups, limit):
        record = _record(groups[g], k, None)
        parts = " ".join(f"{name} {value:g}" for name, value in record["parts"].items())
        reward = "failed" if record["reward"] is None else f"{record['reward']:g}"
        heading = (f"[{record['id']}] reward {reward}{f' ({parts})' if parts else ''}, {record['length']} tokens, {record['finish_reason']}, "
                   f"answer {record['answer']}")
        blocks.append("\n".join((heading, _indent(groups[g].group.prompt.prompt.question), _indent(record["completion"]))))
    return "\n\n".join(blocks)


def _pick(groups: Sequence[ScoredGroup], limit: int) -> list[tuple[int, int]]:
    """(group, sample) pairs until `limit`: best and worst sample of one group after another, then the others. The best alone would flatter."""
    ranked = [_best_worst_rest(group.rewards) for group in groups]
    rounds = max((len(order) for order in ranked), default=0)
    firsts = [(g, k) for g, order in enumerate(ranked) for k in order[:2]]
    return [*firsts, *((g, order[turn]) for turn in range(2, rounds) for g, order in enumerate(ranked) if turn < len(order))][:limit]


def _best_worst_rest(rewards: Sequence[float]) -> list[int]:
    order = sorted(range(len(rewards)), key=lambda k: (-rewards[k], k))
    return order[:1] + order[-1:] + order[1:-1] if len(order) > 1 else order


def _record(scored: ScoredGroup, k: int, advantage: float | None) -> dict[str, Any]:
    completion, valid = scored.group.completions[k], scored.valid[k]
    record: dict[str, Any] = {
        "id": completion.id, "prompt": scored.group.prompt.text, "completion": completion.text, "answer": scored.group.prompt.prompt.answer,
        "reward": float(scored.rewards[k]) if valid else None, "parts": {name: float(values[k]) for name, values in scored.parts.items()},
        "length": len(completion.tokens), "finish_reason": completion.finish_reason,
    }
    return record if advantage is None else {**record, "advantage": None if np.isnan(advantage) else advantage}


def _indent(text: str, most: int = 600) -> str:
    if len(text) > most:
        text = f"{text[: most // 2]} [... {len(text) - most} characters ...] {text[-most // 2 :]}"
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    (empty)"
