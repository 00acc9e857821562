"""The stage graph drawn: nodes in layers from top to bottom, long edges led between the boxes in lanes of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from r1mega.observe.report.markup import Html, tag

Key = tuple[str, int]  # (node, layer); below its own layer a node's lane


@dataclass(frozen=True)
class Style:
    """Sizes in pixels; `capacity` is how many boxes a layer holds at most."""

    capacity: int
    box_width: float
    box_height: float = 54.0
    gap: float = 22.0
    lane: float = 12.0
    layer_gap: float = 34.0
    margin: float = 6.0
    letter: float = 7.4  # a letter of a name, about; the style sheet's fonts
    small: float = 6.1  # a letter below it


WIDE = Style(capacity=5, box_width=196)
NARROW = Style(capacity=2, box_width=140, gap=10, lane=6, layer_gap=30, margin=3, letter=8.0, small=6.7)


@dataclass
class Layout:
    """Where everything lies: centres of boxes and lanes by key, the edges as steps from key to key."""

    style: Style
    layers: list[list[Key]]
    own: Mapping[str, int]  # node -> its layer
    links: list[tuple[Key, Key]]
    x: dict[Key, float] = field(default_factory=dict)
    width: float = 0.0

    @property
    def height(self) -> float:
        return 2 * self.style.margin + len(self.layers) * self.style.box_height + (len(self.layers) - 1) * self.style.layer_gap

    def y(self, layer: int) -> float:
        """The middle of a layer."""
        return self.style.margin + layer * (self.style.box_height + self.style.layer_gap) + self.style.box_height / 2

    def is_box(self, key: Key) -> bool:
        return self.own[key[0]] == key[1]

    def size(self, key: Key) -> float:
        return self.style.box_width if self.is_box(key) else self.style.lane


def arrange(parents: Mapping[str, Sequence[str]], style: Style) -> Layout:
    """Lay out a graph whose nodes come after their parents. Edges that leave one node for later layers share one lane."""
    own = _assign(parents, style.capacity)
    layers: list[list[Key]] = [[] for _ in range(max(own.values(), default=-1) + 1)]
    for node, layer in own.items():
        layers[layer].append((node, layer))
    links: dict[tuple[Key, Key], None] = {}
    for node, above in parents.items():
        for source in above:
            if source not in own:
                continue
            for layer in range(own[source] + 1, own[node]):
                if (source, layer) not in layers[layer]:
                    layers[layer].append((source, layer))
                links[(source, layer - 1), (source, layer)] = None
            links[(source, own[node] - 1), (node, own[node])] = None
    layout = Layout(style, layers, own, list(links))
    _order(layout)
    _place(layout)
    return layout


def _assign(parents: Mapping[str, Sequence[str]], capacity: int) -> dict[str, int]:
    """The layer of every node: below its parents, at most `capacity` in one; of those that could come next, children of the latest nodes first
    (short edges), then those with the longest way still below them."""
    below: dict[str, int] = {}
    for node in reversed(list(parents)):
        below.setdefault(node, 0)
        for above in parents[node]:
            below[above] = max(below.get(above, 0), below[node] + 1)
    own: dict[str, int] = {}
    waiting, layer = list(parents), 0
    while waiting:
        ready = [node for node in waiting if not set(parents[node]) & set(waiting)] or waiting[:1]
        newest = {node: max((own[above] for above in parents[node] if above in own), default=-1) for node in ready}
        for node in sorted(ready, key=lambda node: (-newest[node], -below[node]))[:capacity]:
            own[node] = layer
            waiting.remove(node)
        layer += 1
    return own


def _order(layout: Layout) -> None:
    """Few crossings: every layer sorted by the mean place of its neighbours, downwards and upwards in turn; the best of all rounds is kept."""
    best, fewest = [list(layer) for layer in layout.layers], _crossings(layout)
    for turn in range(12):
        places = {key: place / max(1, len(layer) - 1) for layer in layout.layers for place, key in enumerate(layer)}
        for layer in layout.layers if turn % 2 == 0 else layout.layers[::-1]:
            layer.sort(key=lambda key: fmean([places[one] for one in _neighbours(layout, key, up=turn % 2 == 0)] or [places[key]]))
            places |= {key: place / max(1, len(layer) - 1) for place, key in enumerate(layer)}
        if (found := _crossings(layout)) < fewest:
            best, fewest = [list(layer) for layer in layout.layers], found
    layout.layers[:] = best


def _neighbours(layout: Layout, key: Key, up: bool) -> list[Key]:
    return [source if up else target for source, target in layout.links if (target if up else source) == key]


def _crossings(layout: Layout) -> int:
    place = {key: at for layer in layout.layers for at, key in enumerate(layer)}
    by_layer: dict[int, list[tuple[int, int]]] = {}
    for source, target in layout.links:
        by_layer.setdefault(source[1], []).append((place[source], place[target]))
    return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for edges in by_layer.values() for at, a in enumerate(edges) for b in edges[at + 1 :])


def _place(layout: Layout) -> None:
    """x of every key: as near to its neighbours as its layer leaves room."""
    style = layout.style
    layout.width = 2 * style.margin + max((sum(map(layout.size, layer)) + style.gap * (len(layer) - 1) for layer in layout.layers), default=0)
    for layer in layout.layers:
        used, at = sum(map(layout.size, layer)) + style.gap * (len(layer) - 1), 0.0
        for key in layer:
            layout.x[key] = (layout.width - used) / 2 + at + layout.size(key) / 2
            at += layout.size(key) + style.gap
    for _ in range(10):
        for layer in layout.layers:
            wish = [fmean([layout.x[one] for up in (True, False) for one in _neighbours(layout, key, up)] or [layout.x[key]]) for key in layer]
            _settle(layout, layer, wish)


def _settle(layout: Layout, layer: Sequence[Key], wish: Sequence[float]) -> None:
    """The mean of two placements that keep all distances: one that gives way to the right, one to the left."""
    style = layout.style
    half = [layout.size(key) / 2 for key in layer]
    apart = [half[i] + half[i + 1] + style.gap for i in range(len(layer) - 1)]
    low = [style.margin + half[0]]
    high = [layout.width - style.margin - half[-1]]
    for distance in apart:
        low.append(low[-1] + distance)
    for distance in reversed(apart):
        high.insert(0, high[0] - distance)
    right: list[float] = []
    for i, wanted in enumerate(wish):
        right.append(min(max(wanted, low[i], right[-1] + apart[i - 1] if i else low[i]), high[i]))
    left: list[float] = []
    for i in range(len(layer) - 1, -1, -1):
        left.insert(0, max(min(wish[i], high[i], left[0] - apart[i] if left else high[i]), low[i]))
    for i, key in enumerate(layer):
        layout.x[key] = (right[i] + left[i]) / 2


@dataclass(frozen=True)
class NodeText:
    """What a box says."""

    state: str
    detail: str  # second line: the stage's kind and time
    headline: str  # third line
    title: str  # what a pointer sees


SIGNS = {"done": "✓", "running": "▶", "stale": "≠", "failed": "✕", "interrupted": "‖", "pending": "○"}


def draw(layout: Layout, texts: Mapping[str, NodeText], class_: str) -> Html:
    """The SVG; every box links to `#stage-<name>`."""
    edges = [_edge(layout, source, target) for source, target in layout.links]
    boxes = [_box(layout, name, text) for name, text in texts.items() if name in layout.own]
    arrow = tag("marker", tag("path", d="M0 0 8 4 0 8z"), id=f"arrow-{class_}", viewBox="0 0 8 8", refX=8, refY=4, markerWidth=7, markerHeight=7,
                orient="auto")
    lanes = [_lane(layout, key) for layer in layout.layers for key in layer if not layout.is_box(key)]
    curves = [tag("path", d=d, class_="edge", marker_end=f"url(#arrow-{class_})" if ends else None) for d, ends in edges]
    return tag("svg", tag("defs", arrow), lanes, curves, boxes,
               viewBox=f"0 0 {_at(layout.width)} {_at(layout.height)}", class_=f"graph {class_}", role="group", aria_label="Stage graph",
               style=f"max-width:{_at(layout.width)}px")


def _lane(layout: Layout, key: Key) -> Html:
    """A long edge's way past a layer."""
    middle, half = layout.y(key[1]), layout.style.box_height / 2
    return tag("path", d=f"M{_at(layout.x[key])} {_at(middle - half)}V{_at(middle + half)}", class_="edge")


def _edge(layout: Layout, source: Key, target: Key) -> tuple[str, bool]:
    """A link as a curve, and whether it ends at a box."""
    half = layout.style.box_height / 2
    x0, y0, x1, y1 = layout.x[source], layout.y(source[1]) + half, layout.x[target], layout.y(target[1]) - half
    bend = (y1 - y0) * 0.55
    return f"M{_at(x0)} {_at(y0)}C{_at(x0)} {_at(y0 + bend)} {_at(x1)} {_at(y1 - bend)} {_at(x1)} {_at(y1)}", layout.is_box(target)


def _box(layout: Layout, name: str, text: NodeText) -> Html:
    style, key = layout.style, (name, layout.own[name])
    left, top = layout.x[key] - style.box_width / 2, layout.y(key[1]) - style.box_height / 2
    letters = int((style.box_width - 28) / style.letter)
    small = int((style.box_width - 14) / style.small)
    sign = tag("tspan", SIGNS.get(text.state, "?"), class_="sign")
    return tag("a", tag("title", text.title), tag("rect", x=_at(left), y=_at(top), width=style.box_width, height=style.box_height, rx=8),
               tag("text", sign, " ", _cut(name, letters), x=_at(left + 9), y=_at(top + 18), class_="name"),
               tag("text", _cut(text.detail, small), x=_at(left + 9), y=_at(top + 32.5)),
               tag("text", _cut(text.headline, small), x=_at(left + 9), y=_at(top + 46), class_="headline"),
               href=f"#stage-{name}", class_=f"node {text.state}", aria_label=text.title)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _at(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
