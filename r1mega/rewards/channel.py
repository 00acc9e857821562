"""Length-prefixed messages over pipes, with deadlines.

Both ends use the same two functions. `poll` instead of `select`, because a training process may hold more than 1,024 descriptors.
"""

from __future__ import annotations

import os
import select
import struct
import time

_HEADER = struct.Struct("!Q")
_CHUNK = 1 << 20


class ChannelClosedError(Exception):
    """The other end is gone."""


class DeadlineError(Exception):
    """The deadline passed before the message was through."""


def send(fd: int, payload: bytes, deadline: float | None = None) -> None:
    """Write one message; `deadline` is on `time.monotonic()`'s clock. With a deadline `fd` must be non-blocking."""
    left = memoryview(_HEADER.pack(len(payload)) + payload)
    while left:
        _wait(fd, select.POLLOUT, deadline)
        try:
            left = left[os.write(fd, left):]
        except BlockingIOError:
            continue
        except BrokenPipeError as error:
            raise ChannelClosedError from error


def receive(fd: int, deadline: float | None = None) -> bytes:
    """Read one message. Raises `ChannelClosedError` at end of file, also in the middle of a message."""
    (size,) = _HEADER.unpack(_read(fd, _HEADER.size, deadline))
    return _read(fd, size, deadline)


def _read(fd: int, size: int, deadline: float | None) -> bytes:
    data = bytearray()
    while len(data) < size:
        _wait(fd, select.POLLIN, deadline)
        chunk = os.read(fd, min(size - len(data), _CHUNK))
        if not chunk:
            raise ChannelClosedError
        data += chunk
    return bytes(data)


def _wait(fd: int, event: int, deadline: float | None) -> None:
    """Return when `fd` is ready or its other end closed."""
    poll = select.poll()
    poll.register(fd, event)
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise DeadlineError
        if poll.poll(None if left is None else left * 1000):
            return
