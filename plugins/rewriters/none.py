"""No rewriting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from r1mega import hookimpl
from r1mega.data.records import SampleRecord
from r1mega.hookspecs import Register


class Unchanged:
    """Leaves every sample as it was made."""

    version: ClassVar[str] = "1"

    def rewrite(self, samples: Sequence[SampleRecord]) -> Sequence[SampleRecord | None]:
        """See `hookspecs.Rewriter`."""
        return samples


@hookimpl
def register_rewriters(register: Register) -> None:
    register("none", Unchanged)
