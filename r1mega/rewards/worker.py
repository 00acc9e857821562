"""The worker's side of the pool: `main` is what a worker process runs.

A worker is two processes. The **keeper** is the pool's child. It forks the **scorer** before anything heavy is imported, puts it into a
process group of its own, and then only waits: when the pool is gone (its end of the pipe closed, or the kernel's parent-death signal), when
the pool says so (SIGTERM), or when the scorer ends, it kills the scorer's whole group, so that a process started by a reward does not outlive
it either, and ends the way the scorer ended. A reward stuck in C code cannot stop this, because the keeper runs no reward code.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import pickle
import resource
import select
import signal
import sys
import traceback
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from r1mega.config import RewardTerm
from r1mega.rewards import channel
from r1mega.rewards.build import build_reward, checked_scores, load_samples, seen

_PR_SET_PDEATHSIG = 1
_MAX_TEXT = 500  # characters of an error or an explanation that travel back


@dataclass(frozen=True)
class Setup:
    """The first message to a worker."""

    terms: dict[str, RewardTerm]
    memory_mb: int  # address-space limit; 0: none


@dataclass(frozen=True)
class Call:
    """Score these samples with this reward term. Every sample is a pickle of its own."""

    reward: str
    samples: list[bytes]


def main(pool: int) -> NoReturn:
    """Run a worker for the process `pool`; requests on standard input, replies on what was standard output."""
    requests, replies = _take_pipes()
    wake, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})  # a blocked signal is inherited
    _die_with_parent(pool, signal.SIGTERM)

    keeper = os.getpid()
    scorer = os.fork()
    if scorer == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.close(wake)
        os.close(wake_write)
        os.setpgid(0, 0)
        _die_with_parent(keeper, signal.SIGKILL)
        _score_until_closed(requests, replies)
    _keep(scorer, requests, replies, wake)


def _note(_number: int, _frame: FrameType | None) -> None:
    """Nothing to do: the wake-up descriptor ends the keeper's wait."""


def _take_pipes() -> tuple[int, int]:
    """Move the protocol off standard input and output, so that a reward that prints or reads cannot touch it. Prints go to standard error."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, replies


def _die_with_parent(parent: int, number: int) -> None:
    """Have the kernel send us signal `number` when our parent dies. Elsewhere than on Linux the closed pipe does it alone."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before we asked
        os._exit(0)


def _keep(scorer: int, requests: int, replies: int, wake: int) -> NoReturn:
    """Wait for any reason to end, then leave nothing of the scorer's process group."""
    os.close(replies)  # the pool must see the end of file when the scorer is gone
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it is its own leader by now, or gone already
        os.setpgid(scorer, scorer)  # both sides do it, so that neither has to wait for the other
    poll = select.poll()
    poll.register(requests, 0)  # only hang-up
    poll.register(wake, select.POLLIN)
    poll.poll()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(scorer, signal.SIGKILL)
    _, status = os.waitpid(scorer, 0)
    _end_like(status)


def _end_like(status: int) -> NoReturn:
    """Exit with the scorer's code or die by its signal, so that the pool can tell the cause."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _score_until_closed(requests: int, replies: int) -> NoReturn:
    """The scorer: build every reward once, then answer calls one at a time, in the main thread."""
    faulthandler.enable()
    setup: Setup = pickle.loads(channel.receive(requests))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if setup.memory_mb > 0:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = setup.memory_mb << 20
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def reply(message: dict[str, Any]) -> None:
        channel.send(replies, json.dumps(message).encode())

    try:
        rewards = {}
        for key, term in setup.terms.items():
            reply({"building": key})
            rewards[key] = build_reward(key, term)
        reply({"ready": True})
        while True:
            call: Call = pickle.loads(channel.receive(requests))
            try:
                term = setup.terms[call.reward]
                scores = checked_scores(rewards[call.reward], [seen(sample, term) for sample in load_samples(call.samples)])
                reply({"scores": [[float(score.value), score.explanation[:_MAX_TEXT]] for score in scores]})
            except (Exception, SystemExit) as error:
                reply({"error": _describe(error)})
    except channel.ChannelClosedError:
        os._exit(0)
    except (Exception, SystemExit) as error:
        reply({"failed": str(error)[:_MAX_TEXT] or _describe(error), "type": type(error).__name__})
        os._exit(1)


def _describe(error: BaseException) -> str:
    """One line: type, message, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}"[:_MAX_TEXT] + where
