"""The pool's handle on one worker process: start it, call it under a deadline, kill it."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from typing import Any, Literal

from r1mega import errors
from r1mega.errors import R1MegaError, RewardError
from r1mega.rewards import channel
from r1mega.rewards.worker import Call, Setup

START_S = 120.0  # imports and reward factories; a file system shared by hundreds of nodes can be slow
_END_S = 5.0

# Not `-m`: the module search path must be this process's own, and an environment variable would leak it into what rewards start.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from r1mega.rewards.worker import main; main(int(sys.argv[2]))"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

FailureKind = Literal["timeout", "crash", "error"]


class CallFailedError(Exception):
    """One call went wrong. After "timeout" and "crash" the worker is of no more use."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class WorkerProcess:
    """A worker. The constructor only starts the process; `wait_ready` waits until its rewards are built."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        path = [entry or os.getcwd() for entry in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, json.dumps(path), str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True, env=os.environ | _ONE_THREAD)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until every reward is built. Raises `PluginError`, `ConfigError` or `RewardError` that names the one that cannot be."""
        deadline = time.monotonic() + START_S
        building = "no reward yet"
        try:
            channel.send(self._requests, pickle.dumps(self._setup), deadline)
            while "ready" not in (message := self._receive(deadline)):
                if "failed" in message:
                    raise _error(message["type"], message["failed"])
                building = f"reward '{message['building']}'"
        except channel.DeadlineError as error:
            raise RewardError(f"a reward worker was not ready after {START_S:g} s; it was building {building}") from error
        except channel.ChannelClosedError as error:
            raise RewardError(f"a reward worker died at start-up while building {building}: {self._end()}") from error

    def call(self, reward: str, samples: list[bytes], timeout_s: float) -> list[tuple[float, str]]:
        """Value and explanation of each sample. Raises `CallFailedError`."""
        deadline = time.monotonic() + timeout_s
        try:
            channel.send(self._requests, pickle.dumps(Call(reward, samples)), deadline)
            message = self._receive(deadline)
        except channel.DeadlineError as error:
            raise CallFailedError("timeout", f"no result within {timeout_s:g} s; its worker was killed") from error
        except channel.ChannelClosedError as error:
            raise CallFailedError("crash", f"its worker process died: {self._end()}") from error
        if "error" in message:
            raise CallFailedError("error", message["error"])
        return [(value, explanation) for value, explanation in message["scores"]]

    def terminate(self) -> None:
        """Ask the keeper to kill everything; callable from any thread, does not wait."""
        self._process.terminate()

    def kill(self) -> None:
        """End the worker and all it started, and wait for it."""
        self._process.terminate()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:  # the keeper itself is stopped; the scorer dies with it
            self._process.kill()
            self._process.wait()

    def _receive(self, deadline: float) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(channel.receive(self._replies, deadline))
        return message

    def _end(self) -> str:
        """How the process ended, in words."""
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        if code >= 0:
            return f"exit code {code}"
        hint = " (out of memory, or killed from outside)" if -code == signal.SIGKILL else ""
        return f"signal {signal.Signals(-code).name}{hint}"


def _error(name: str, message: str) -> R1MegaError:
    """The worker's start-up error as the same error here."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, R1MegaError):
        return kind(message)
    return RewardError(f"a reward worker cannot start: {name}: {message}")
