"""HTML and SVG made from Python values: everything is escaped unless it is markup already, so no text of a run can become markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = frozenset({"br", "circle", "col", "input", "line", "link", "meta", "path", "polygon", "rect"})


class Html(str):
    """A string that is markup: `tag` takes it as it is."""

    __slots__ = ()


def escape(value: object) -> Html:
    """`value` as text. What UTF-8 or HTML cannot carry (lone surrogates, NUL and other control characters) becomes U+FFFD."""
    if isinstance(value, Html):
        return value
    text = str(value).encode("utf-8", "replace").decode() if not str(value).isascii() else str(value)
    if not text.isprintable():
        text = "".join(one if one in "\n\t" or ord(one) > 0x9F or 0x20 <= ord(one) < 0x7F else "\ufffd" for one in text.replace("\r\n", "\n"))
    return Html(html.escape(text, quote=True))


def join(*children: object) -> Html:
    """All children one after the other; None is nothing, a list is its items."""
    return Html("".join(_flat(children)))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. Attribute names lose a trailing underscore (`class_`) and write inner ones as hyphens (`data_step`); None and False leave an
    attribute out, True writes it without a value."""
    written = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{''.join(_flat(children))}</{name}>")


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(value)}"'


def _flat(children: Iterable[object]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            yield escape(child)
        elif isinstance(child, Iterable):
            yield from _flat(child)
        else:
            yield escape(child)
