"""A completion while it is being made: tokens in, text that is whole out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

Part = tuple[Literal["reasoning", "answer"], str]
OPEN, CLOSE = "<think>", "</think>"
_CUT = "\N{REPLACEMENT CHARACTER}"


class TokenText:
    """The text of tokens as they come. A character of several tokens comes with its last one; all pieces together are the text of all tokens."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._begin = self._told = 0  # tokens before `told` have been told; decoding starts at `begin`, since a token's text may depend on the one before

    def push(self, token: int) -> str:
        """The text that is whole now and was not before."""
        self._tokens.append(token)
        text = self._new()
        if not text or text.endswith(_CUT):
            return ""
        self._begin, self._told = self._told, len(self._tokens)
        return text

    def rest(self) -> str:
        """What never became whole."""
        text, self._told = self._new(), len(self._tokens)
        return text

    def _new(self) -> str:
        known = self._decode(self._tokens[self._begin: self._told])
        return self._decode(self._tokens[self._begin:])[len(known):]


class Parts:
    """Cuts streamed text into reasoning (its marks included) and answer, and ends it before a stop string. Holds back what may become a mark."""

    def __init__(self, *, starts_in_reasoning: bool, stop: Iterable[str] = ()) -> None:
        self.stopped = False
        self._inside = starts_in_reasoning
        self._stop = tuple(stop)
        self._held = ""

    def push(self, text: str) -> list[Part]:
        """What can be shown now."""
        self._held += text
        found: list[Part] = []
        while not self.stopped and (mark := self._first_mark()):
            before, _, self._held = self._held.partition(mark)
            found.append(self._part(before))
            if mark in self._stop:
                self.stopped = True
            else:
                found.append(("reasoning", mark))
                self._inside = mark == OPEN
        if self.stopped:
            self._held = ""
        begun = max((size for mark in (OPEN, CLOSE, *self._stop) for size in range(1, len(mark)) if self._held.endswith(mark[:size])), default=0)
        ready, self._held = self._held[: len(self._held) - begun], self._held[len(self._held) - begun:]
        return [part for part in (*found, self._part(ready)) if part[1]]

    def rest(self) -> list[Part]:
        """What was held back and became no mark."""
        held, self._held = self._held, ""
        return [self._part(held)] if held else []

    def _first_mark(self) -> str:
        places = {mark: place for mark in (*self._stop, OPEN, CLOSE) if (place := self._held.find(mark)) >= 0}
        return min(places, key=places.__getitem__, default="")

    def _part(self, text: str) -> Part:
        return ("reasoning" if self._inside else "answer"), text
