"""Line charts as inline SVG: axes, a smoothed line over the raw one, and the numbers for the page's script to show under the pointer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from r1mega.observe.report.collect import Series
from r1mega.observe.report.markup import Html, tag

WIDTH, HEIGHT = 380, 206
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 34
COLOURS = 8  # the style sheet's; more lines than that begin anew with another dash
MOST_POINTS = 600  # drawn of one line


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    series: Series


def line_chart(title: str, lines: Sequence[Line], *, unit: str = "", x_label: str = "step", most: int = MOST_POINTS, note: str = "") -> Html:
    """A figure of the lines over a common axis; nothing for lines without points. At most `most` points of each are drawn, all of them true ones."""
    drawn = [line for line in lines if line.series.steps]
    if not drawn:
        return Html("")
    frame = _Frame.around([line.series for line in drawn])
    shapes: list[Html] = []
    data = []
    for number, line in enumerate(drawn):
        raw, smooth = line.series, smoothed(line.series.values)
        kept = keep(raw.steps, raw.values, most)
        xs, ys = [raw.steps[i] for i in kept], [raw.values[i] for i in kept]
        style = f"line c{number % COLOURS}" + (" dashed" if number >= COLOURS else "")
        if smooth is not None:
            shapes.append(tag("path", d=frame.path(xs, ys), class_=f"{style} raw"))
            ys_drawn = [smooth[i] for i in kept]
        else:
            ys_drawn = ys
        shapes.append(tag("path", d=frame.path(xs, ys_drawn), class_=style))
        if len(xs) <= 12:
            shapes += [tag("circle", cx=_px(frame.x(x)), cy=_px(frame.y(y)), r=2.6, class_=f"dot c{number % COLOURS}") for x, y in zip(xs, ys, strict=True)]
        data.append({"n": line.name, "x": [_short(x) for x in xs], "y": [_short(y) for y in ys]})
    label = "; ".join(_in_words(line) for line in drawn)
    svg = tag("svg", frame.axes(x_label), shapes, tag("path", class_="cursor", d=""), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", tabindex=0,
              aria_label=f"{title}: {label}. Arrow keys move over the points.", data_x0=_number(frame.x0), data_x1=_number(frame.x1),
              data_lines=json.dumps(data, separators=(",", ":"), ensure_ascii=False))
    legend = tag("ul", [tag("li", tag("i", class_=f"swatch c{number % COLOURS}" + (" dashed" if number >= COLOURS else "")), line.name)
                        for number, line in enumerate(drawn)], class_="legend") if len(drawn) > 1 else None
    missing = sum(line.series.not_finite for line in drawn)
    notes = "; ".join(text for text in (note, f"{missing} value{'s' if missing > 1 else ''} not finite" if missing else "") if text)
    return tag("figure", tag("figcaption", tag("b", title), tag("span", unit, class_="unit") if unit else None), svg, legend,
               tag("p", notes, class_="note") if notes else None, class_="chart")


def smoothed(values: Sequence[float]) -> list[float] | None:
    """The mean over a window centred on every value, a twentieth of them wide (at least 5); None for lines too short to need it."""
    if len(values) < 20:
        return None
    half = max(2, len(values) // 40)
    sums = [0.0, *accumulate(values)]
    found = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)  # as far to both sides, so that the ends do not bend towards the middle
        reach = max(reach, 1)
        low, high = max(0, i - reach), min(len(values), i + reach + 1)
        found.append((sums[high] - sums[low]) / (high - low))
    return found


def keep(xs: Sequence[float], ys: Sequence[float], most: int) -> list[int]:
    """Indices of at most `most` points that keep the line's shape, peaks included, first and last always.

    Largest-Triangle-Three-Buckets (Steinarsson, "Downsampling Time Series for Visual Representation", 2013): of each bucket the point that spans the
    largest triangle with the one kept before it and the mean of the bucket after it.
    """
    if len(xs) <= most or most < 3:
        return list(range(len(xs))) if len(xs) <= most else [0, len(xs) - 1][:most]
    kept = [0]
    edges = [1 + round(i * (len(xs) - 2) / (most - 2)) for i in range(most - 1)]
    for i in range(most - 2):
        after = range(edges[i + 1], edges[i + 2]) if i + 2 < len(edges) else range(len(xs) - 1, len(xs))
        mean_x, mean_y = sum(xs[k] for k in after) / len(after), sum(ys[k] for k in after) / len(after)
        x, y = xs[kept[-1]], ys[kept[-1]]
        kept.append(max(range(edges[i], edges[i + 1]), key=lambda k: abs((x - mean_x) * (ys[k] - y) - (x - xs[k]) * (mean_y - y))))
    return [*kept, len(xs) - 1]


@dataclass(frozen=True)
class _Frame:
    """Data to pixels."""

    x0: float
    x1: float
    y0: float
    y1: float

    @classmethod
    def around(cls, series: Sequence[Series]) -> _Frame:
        low, high = min(min(one.values) for one in series), max(max(one.values) for one in series)
        if low >= 0 and low < 0.5 * high:  # a bar of nothing below it helps to judge a height
            low = 0.0
        if low == high:
            low, high = (low - 0.5, high + 0.5) if low == 0 else (low - abs(low) / 2, high + abs(high) / 2)
        room = (high - low) * 0.04
        first, last = min(one.steps[0] for one in series), max(one.steps[-1] for one in series)
        return cls(first, last if last > first else first + 1, low if low == 0 else low - room, high + room)

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        points = [f"{_px(self.x(x))} {_px(self.y(y))}" for x, y in zip(xs, ys, strict=True)]
        return "M" + "L".join(points if len(points) > 1 else points * 2)

    def axes(self, x_label: str) -> list[Html]:
        parts: list[Html] = []
        for value in ticks(self.y0, self.y1, 4):
            at = _px(self.y(value))
            parts += [tag("path", d=f"M{LEFT} {at}H{WIDTH - RIGHT}", class_="grid"),
                      tag("text", compact(value), x=LEFT - 6, y=_px(self.y(value) + 3.5), text_anchor="end")]
        for value in ticks(self.x0, self.x1, 5, whole=True):
            parts.append(tag("text", compact(value), x=_px(self.x(value)), y=HEIGHT - BOTTOM + 15, text_anchor="middle"))
        parts.append(tag("text", x_label, x=WIDTH - RIGHT, y=HEIGHT - 4, text_anchor="end", class_="axis"))
        return parts


def ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, about so many; `whole` allows no fractions."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def compact(value: float) -> str:
    """A number for an axis: 12k, 0.35, 3e-7."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    for limit, unit in ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"


def _in_words(line: Line) -> str:
    series = line.series
    return f"{line.name} from {compact(series.values[0])} at {compact(series.steps[0])} to {compact(series.values[-1])} at {compact(series.steps[-1])}"


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _number(value: float) -> str:
    return f"{value:.10g}"


def _short(value: float) -> float | int:
    rounded = float(f"{value:.4g}") if abs(value) < 1e4 else round(value)
    return int(rounded) if float(rounded).is_integer() and abs(rounded) < 1e15 else rounded
