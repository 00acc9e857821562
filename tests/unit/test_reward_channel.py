"""Messages over real pipes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from r1mega.rewards.channel import ChannelClosedError, DeadlineError, receive, send


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:  # the test closed it
            continue


def test_messages_of_any_size_arrive_whole(pipe: tuple[int, int]) -> None:
    messages = [b"", b"x", os.urandom(3_000_000)]  # more than the pipe holds
    thread = threading.Thread(target=lambda: [send(pipe[1], message) for message in messages])
    thread.start()
    assert [receive(pipe[0]) for _ in messages] == messages
    thread.join()


def test_the_deadline_holds_for_reading_and_writing(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    for blocked in (lambda deadline: receive(pipe[0], deadline), lambda deadline: send(pipe[1], bytes(1_000_000), deadline)):
        start = time.monotonic()
        with pytest.raises(DeadlineError):
            blocked(start + 0.05)
        assert 0.04 < time.monotonic() - start < 1


def test_the_other_end_gone_is_told(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"\0\0\0")  # a header cut short
    os.close(pipe[1])
    with pytest.raises(ChannelClosedError):
        receive(pipe[0])


def test_writing_to_a_closed_pipe_is_told(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    with pytest.raises(ChannelClosedError):
        send(pipe[1], b"x")
