"""Metrics whose reductions are exact: what travels is totals and counts, never averages of averages.

A rank adds what it saw in each micro-batch; ranks are merged by one vector of float64 per rank, most simply summed by one all_reduce:

    names = {"loss": "mean", "length_max": "max"}              # the same on every rank
    vector = sums.to_vector(names)
    all_reduce(vector[: additive(names)], SUM)                  # totals and counts
    all_reduce(vector[additive(names) :], MAX)                  # only when there are extremes
    metrics = Sums.from_vector(names, vector).result()
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsFloat

import numpy as np

Kind = Literal["mean", "sum", "max", "min"]


@dataclass
class Sums:
    """An accumulator of named metrics. `kinds` says how a name is reduced; a name that is not listed is a mean."""

    kinds: Mapping[str, Kind] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)  # mean, sum: the sum so far; max, min: the extreme so far
    counts: dict[str, float] = field(default_factory=dict)

    def kind(self, name: str) -> Kind:
        return self.kinds.get(name, "mean")

    def add(self, name: str, total: SupportsFloat, count: SupportsFloat = 1) -> None:
        """Add the sum `total` of `count` values (tokens, samples, whatever the mean is over); for an extreme, `total` is the value itself.

        With `count` 0 nothing was seen and nothing changes, so a rank without data needs no special case.
        """
        total, count = float(total), float(count)
        if count < 0:
            raise ValueError(f"metric '{name}': count must not be negative, got {count}")
        if count == 0:
            return
        if name not in self.totals:
            self.totals[name], self.counts[name] = total, count
            return
        self.totals[name] = _combine(self.kind(name), self.totals[name], total)
        self.counts[name] += count

    def merge(self, other: Sums) -> None:
        """Take in everything `other` has seen. Kinds must agree."""
        for name in other.totals:
            if self.kind(name) != other.kind(name):
                raise ValueError(f"metric '{name}' is a {self.kind(name)} here and a {other.kind(name)} there")
            self.add(name, other.totals[name], other.counts[name])

    def to_vector(self, names: Mapping[str, Kind]) -> np.ndarray:
        """float64 [2 S + X] for S means and sums and X extremes in the order of `names`: totals, counts, then maxima (minima negated).

        `names` must be the same on every rank; a name not seen here is a total of 0, or an extreme of -inf. Raises `ValueError` for a metric
        that `names` leaves out or calls another kind, since it would be lost without a word.
        """
        for name in self.totals:
            if names.get(name) != self.kind(name):
                raise ValueError(f"metric '{name}' is a {self.kind(name)}, but the vector's names say {names.get(name)}")
        added, extremes = _split(names)
        flip = {name: -1.0 if names[name] == "min" else 1.0 for name in extremes}
        return np.array([self.totals.get(name, 0.0) for name in added] + [self.counts.get(name, 0.0) for name in added]
                        + [flip[name] * self.totals[name] if name in self.totals else -math.inf for name in extremes], np.float64)

    @classmethod
    def from_vector(cls, names: Mapping[str, Kind], vector: np.ndarray) -> Sums:
        """The inverse of `to_vector`, after the reduction."""
        added, extremes = _split(names)
        if len(vector) != 2 * len(added) + len(extremes):
            raise ValueError(f"{len(vector)} entries for {len(added)} additive metrics and {len(extremes)} extremes")
        sums = cls(dict(names))
        for i, name in enumerate(added):
            sums.add(name, vector[i], vector[len(added) + i])
        for i, name in enumerate(extremes):
            value = vector[2 * len(added) + i]
            sums.add(name, -value if names[name] == "min" else value, value != -math.inf)
        return sums

    def result(self) -> dict[str, float]:
        """Every metric that was seen; one without data is absent, not 0."""
        return {name: total / self.counts[name] if self.kind(name) == "mean" else total for name, total in self.totals.items()}


def additive(names: Mapping[str, Kind]) -> int:
    """How many leading entries of the vector are reduced by summing; the rest by taking the maximum."""
    return 2 * len(_split(names)[0])


def scalars(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers among `metrics`, nested ones as "outer/inner": what a tracker can plot."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float, np.number)):
            found[f"{prefix}{name}"] = float(value)
    return found


def _split(names: Mapping[str, Kind]) -> tuple[list[str], list[str]]:
    return [n for n, kind in names.items() if kind in ("mean", "sum")], [n for n, kind in names.items() if kind in ("max", "min")]


def _combine(kind: Kind, one: float, two: float) -> float:
    if kind in ("mean", "sum"):
        return one + two
    if math.isnan(one) or math.isnan(two):
        return math.nan
    return max(one, two) if kind == "max" else min(one, two)
