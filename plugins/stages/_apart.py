"""Work that only some ranks have, while the others wait for it: without the deadline that a barrier would set."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

_BEAT_S = 0.2


class AllRanks(Protocol):
    """What `apart` needs of `policy.ranks.Ranks`."""

    @property
    def world_size(self) -> int: ...

    def max_over_ranks(self, value: float) -> float: ...


@dataclass
class _Worker:
    """A call in a thread of its own; a daemon, since a rank whose peers are gone ends without waiting for it."""

    work: Callable[[], None]
    failure: BaseException | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="apart", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # told by the rank's main thread
            self.failure = error

    def busy(self) -> bool:
        """Whether it still runs, after waiting a beat for it. Raises what the work raised."""
        self._thread.join(_BEAT_S)
        if self.failure is not None:
            raise self.failure
        return self._thread.is_alive()


def apart(ranks: AllRanks, work: Callable[[], None] | None) -> None:
    """Run `work` (None on ranks that have none) and return when every rank is done. A collective; `work` itself uses none.

    The work runs beside the main thread, in which the ranks ask each other several times a second whether somebody still works: so it may last
    as long as it likes, a server be as slow as it likes, and a rank that dies is noticed at once. What `work` raises ends its rank at once, which
    ends the others.
    """
    if ranks.world_size == 1:
        if work is not None:
            work()
        return
    worker = _Worker(work) if work is not None else None
    while ranks.max_over_ranks(float(worker is not None and worker.busy())):
        pass
