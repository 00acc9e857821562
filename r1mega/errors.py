"""The errors of r1mega. Every one that reaches a user is one readable line and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class R1MegaError(Exception):
    """A failure that is not the user's mistake: exit code 1."""

    exit_code = 1


class UserError(R1MegaError):
    """A mistake the user can fix: names the file, line or key, what was expected, and the way out. Exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """A config key or value that cannot be: unknown, of the wrong type, or impossible beside another."""


class DataError(UserError):
    """A malformed input file; the message starts with `file:line:` where a line is known."""


class PluginError(UserError):
    """A plugin that is absent, broken, or in conflict with another; both owners are named."""


class RewardError(R1MegaError):
    """A reward that crashed, hung or broke its contract, under the policy `stop`."""


class StageFailed(R1MegaError):
    """A rank of a stage died; the message names the rank, its exit status and its log."""


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest spelling among `known`, else the empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
