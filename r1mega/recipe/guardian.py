"""The process between the driver and the ranks of one stage: starts them, notes the first that fails, and sees that none outlives the rest.

Run by path, with nothing but the standard library and psutil, so that it starts in milliseconds. On Linux it is the subreaper of everything
below it: a process that loses its parent becomes the guardian's child, whatever session it hides in, so "end them all" means all. The driver's
life is the guardian's standard input: end of file means that the driver is dead, and everything below is killed at once. The ranks' lives hang
on the guardian's through `PR_SET_PDEATHSIG`.

Protocol, one JSON object a line: the driver writes the specification (see `launcher`), later perhaps `"stop"`; the guardian answers with
`{"pids": [...]}` once all ranks run and `{"failures": [{"rank", "returncode", "error"}], "left": [pid], "broken": message}` when all are gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

import psutil  # type: ignore[import-untyped]

PARENT, CONSOLE_FD, REPORT_FD = "R1MEGA_PARENT_PID", "R1MEGA_CONSOLE_FD", "R1MEGA_REPORT_FD"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_POLL_S = 0.05
_KILL_S = 10.0  # how long killed processes may take to vanish


def prctl(option: int, value: int) -> None:
    """Linux's prctl(2) with one argument; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, *(ctypes.c_ulong(one) for one in (value, 0, 0, 0)))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; exit at once if that has happened already."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Guardian:
    """The ranks of one stage, from start to end."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.running: dict[int, int] = {}  # pid -> rank
        self.processes: list[subprocess.Popen[bytes]] = []
        self.failures: list[dict[str, Any]] = []
        self.stop = self.orphaned = False
        self.commands = self.reported = b""
        self.report_start, self.report_end = os.pipe()

    def start(self) -> None:
        console = os.dup(2)
        for rank, one in enumerate(self.spec["ranks"]):
            environment = {**os.environ, **one["env"], PARENT: str(os.getpid()), REPORT_FD: str(self.report_end)}
            descriptors = [self.report_end]
            if rank == 0:
                environment[CONSOLE_FD] = str(console)
                descriptors.append(console)
            with open(one["log"], "ab") as log:
                process = subprocess.Popen(self.spec["command"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                           env=environment, pass_fds=descriptors, start_new_session=True)
            self.processes.append(process)
            self.running[process.pid] = rank

    def watch(self) -> None:
        """Return when all ranks have ended, one has failed, or the driver wants an end or is gone.

        A rank that is killed often makes its peers fail first (their connections break before the kernel has buried it), so after a failure by
        exit status the others get `settle_s` to show who was first.
        """
        settled = float("inf")
        while self.running and not self.stop and not self.orphaned:
            self.listen()
            self.reap()
            if any(failure["returncode"] < 0 for failure in self.failures) or time.monotonic() > settled:
                return
            if self.failures:
                settled = min(settled, time.monotonic() + self.spec["settle_s"])

    def end(self) -> list[int]:
        """End everything below: SIGTERM to the ranks' groups, SIGKILL after `grace_s` to all that is left. Returns what would not go."""
        deadline = time.monotonic() + self.spec["grace_s"]
        for pid in self.running:
            _signal_group(pid, signal.SIGTERM)
        while self.running and not self.orphaned and time.monotonic() < deadline:
            self.listen()
            self.reap(blame=False)
        deadline = time.monotonic() + _KILL_S
        while below := psutil.Process().children(recursive=True):
            if time.monotonic() > deadline:
                return [process.pid for process in below]
            for process in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.reap(blame=False)
            time.sleep(0.01)
        if sys.platform != "linux":  # no subreaper there: what its parent left behind is still in the rank's group
            for process in self.processes:
                _signal_group(process.pid, signal.SIGKILL)
        return []

    def listen(self) -> None:
        """Wait a moment for the driver's word and the ranks' reports."""
        ready, _, _ = select.select([0, self.report_start], [], [], _POLL_S)
        if 0 in ready:
            read = os.read(0, 4096)
            self.commands += read
            self.stop = self.stop or b"stop" in self.commands
            self.orphaned = not read
        if self.report_start in ready:
            self.reported += os.read(self.report_start, 65536)
        if os.getppid() != self.spec["driver"]:
            self.orphaned = True

    def reap(self, blame: bool = True) -> None:
        """Bury the dead: ranks, and orphans the kernel handed over."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            rank = self.running.pop(pid, None)
            if rank is None:
                continue
            self.processes[rank].returncode = returncode = os.waitstatus_to_exitcode(status)
            if returncode and blame:
                self.failures.append({"rank": rank, "returncode": returncode})

    def collect(self) -> None:
        """Attach to each failure what its rank reported."""
        os.close(self.report_end)
        while chunk := os.read(self.report_start, 65536):
            self.reported += chunk
        reports = {report["rank"]: report for report in map(json.loads, self.reported.splitlines())}
        for failure in self.failures:
            failure["error"] = reports.get(failure["rank"])


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(0, 1)
        if not read:
            sys.exit(1)
        line += read
    return line


def _answer(message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")


def main() -> None:
    spec = json.loads(_read_line())
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    fcntl.fcntl(0, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    guardian = Guardian(spec)

    def stop(*_: object) -> None:
        guardian.stop = True

    signal.signal(signal.SIGTERM, stop)
    broken = None
    try:
        guardian.start()
        _answer({"pids": list(guardian.running)})
        guardian.watch()
    except OSError as error:  # no more processes, no more open files, a log that cannot be opened
        broken = str(error)
    left = guardian.end()
    if not left:
        guardian.collect()
    _answer({"failures": guardian.failures, "left": left, "broken": broken})


if __name__ == "__main__":
    main()
