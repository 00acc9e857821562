"""What a rollout looked like: sums that add up over replicas, and the means over the samples they are about."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from r1mega.types import ScoredGroup


def rollout_sums(groups: Sequence[ScoredGroup], terms: Collection[str]) -> dict[str, float]:
    """Sums over a replica's valid samples, with the same keys on every replica: add them up and pass them to `rollout_means`.

    `terms` are all reward terms of the config, whether or not they apply to these prompts.
    """
    valid = [(reward, completion) for group in groups
             for reward, ok, completion in zip(group.rewards, group.valid, group.group.completions, strict=True) if ok]
    sums = {"samples": float(sum(len(group.valid) for group in groups)), "valid": float(len(valid)), "reward": sum(reward for reward, _ in valid),
            "length": float(sum(len(completion.tokens) for _, completion in valid)),
            "truncated": float(sum(completion.finish_reason == "length" for _, completion in valid))}
    for name in terms:
        values = [value for group in groups if name in group.parts for value, ok in zip(group.parts[name], group.valid, strict=True) if ok]
        sums |= {f"reward/{name}": sum(values, 0.0), f"samples/{name}": float(len(values))}
    return sums


def rollout_means(totals: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a rollout from the sums over all replicas: means over valid samples, a reward term's over the samples that have it.

    A term without a single sample is left out.
    """
    count = max(1.0, totals["valid"])
    metrics = {name: totals[name] / count for name in ("reward", "length", "truncated")}
    for name, total in totals.items():
        term = name.removeprefix("reward/")
        if term != name and totals[f"samples/{term}"]:
            metrics[name] = total / totals[f"samples/{term}"]
    if "reward/accuracy" in metrics:
        metrics["accuracy"] = metrics["reward/accuracy"]
    return metrics | {"reward_failed": totals["samples"] - totals["valid"], "generated_tokens": totals["length"]}
