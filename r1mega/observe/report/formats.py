"""Numbers, times and small pieces of the page that several sections share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from r1mega.observe.report.graph import SIGNS
from r1mega.observe.report.markup import Html, tag


def figure(value: object, digits: int = 3) -> str:
    """A number as text: fractions with `digits` decimals, whole ones and large ones without; a dash for what is missing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 2) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2e}" if 0 < abs(value) < 10**-digits else f"{value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """`4.2 s`, `12 min 5 s`, `3 h 20 min`; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def badge(state: str) -> Html:
    """A stage's state: a sign, a word and a colour."""
    return tag("span", f"{SIGNS.get(state, '?')} {state}", class_=f"badge {state}")


def table(heads: Sequence[object], rows: Sequence[Sequence[object]], *, caption: str, numeric: int = 1) -> Html:
    """A table that scrolls by itself where it is wider than the page; from column `numeric` on, cells are numbers. The first cell heads its row."""
    body = [tag("tr", tag("th", row[0], scope="row"), [tag("td", cell, class_="n" if at >= numeric else None) for at, cell in enumerate(row[1:], 1)])
            for row in rows]
    head = tag("tr", [tag("th", cell, scope="col", class_="n" if at >= numeric else None) for at, cell in enumerate(heads)])
    return tag("div", tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body)), class_="scroll", tabindex=0, role="region",
               aria_label=caption)


def stage_link(name: str) -> Html:
    """A stage's name, leading to its section."""
    return tag("a", name, href=f"#stage-{name}")


def bar(parts: Sequence[tuple[str, float]]) -> Html:
    """Shares of a whole beside each other, each in its name's colour."""
    pieces = [tag("i", class_=_colour(name), style=f"width:{100 * share:.2f}%") for name, share in parts if share > 0]
    return tag("span", pieces, class_="bars", aria_hidden="true")


def legend(names: Sequence[str]) -> Html:
    """The colours of a table's bars."""
    return tag("ul", [tag("li", tag("i", class_=f"swatch {_colour(name)}"), name) for name in names], class_="legend")


def _colour(name: str) -> str:
    return f"p-{name.replace('-', '')}"


def section(identity: str, title: str, *content: object, intro: object = None) -> Html:
    """A section with its heading."""
    return tag("section", tag("h2", title, id=f"{identity}-title"), tag("p", intro, class_="intro") if intro else None, content, id=identity,
               aria_labelledby=f"{identity}-title")
