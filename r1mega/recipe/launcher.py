"""Run one stage as one process group on this machine: start its ranks, wait, and say in one line what went wrong.

Our own rather than torchrun: the driver imports no torch, the dead rank is named with its log, the others are ended with all their children,
and nothing outlives the driver (see `guardian`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from r1mega.config import ClusterConfig
from r1mega.errors import R1MegaError, StageFailed, UserError
from r1mega.recipe import guardian

GRACE_S = 5.0  # between SIGTERM and SIGKILL
SETTLE_S = 3.0  # how long the peers of a failed rank may still show who failed first
_END_S = GRACE_S + 15.0  # how long the guardian may take to end everything
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Launch:
    """One attempt at a stage."""

    name: str  # the node
    stage_dir: Path
    world_size: int
    cluster: ClusterConfig
    epoch: int

    def log(self, rank: int) -> Path:
        return self.stage_dir / "logs" / f"rank{rank}.log"


def run(launch: Launch) -> None:
    """Run all ranks to their end. Raises `UserError` for a mistake a rank found (its own words), `StageFailed` for every other death of a rank,
    with the rank, its exit status or signal, its log and the log's last line. On any exception everything started here has ended."""
    if launch.cluster.kind != "local":
        raise UserError(f"cluster.kind={launch.cluster.kind}: `r1mega run` starts ranks on this machine only; set cluster.kind=local")
    starts = _open_logs(launch)
    with _guarded(_specification(launch)) as process:
        assert process.stdout
        answers = [json.loads(line) for line in process.stdout]
    pids = answers[0].get("pids", []) if answers else []
    if not answers or "failures" not in answers[-1]:
        _end_sessions(pids)
        raise StageFailed(f"stage '{launch.name}': the process that guards its ranks was killed from outside; its ranks have been ended. "
                          "Run again to resume")
    outcome = answers[-1]
    if outcome["left"]:
        raise StageFailed(f"stage '{launch.name}': processes {outcome['left']} cannot be killed (stuck in the kernel). "
                          f"Logs: {launch.log(0).parent}")
    if outcome["broken"]:
        raise R1MegaError(f"stage '{launch.name}': its ranks cannot be started: {outcome['broken']}")
    if outcome["failures"]:
        raise _diagnose(launch, outcome["failures"], starts)


def _specification(launch: Launch) -> dict[str, Any]:
    here = os.getcwd() in sys.path or "" in sys.path
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = launch.cluster.threads_per_rank or max(1, cores // launch.world_size)
    port = _check_port(launch.cluster.master_port) if launch.cluster.master_port is not None else _free_port()
    common = {"WORLD_SIZE": launch.world_size, "LOCAL_WORLD_SIZE": launch.world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
              "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": 1}
    if sys.stderr.isatty():  # rank 0 draws on our terminal but cannot ask it for its size
        size = shutil.get_terminal_size()
        common |= {"COLUMNS": size.columns, "LINES": size.lines}
    ranks = [{"env": {key: str(value) for key, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}, "log": str(launch.log(rank))}
             for rank in range(launch.world_size)]
    command = [sys.executable, *([] if here else ["-P"]), "-m", "r1mega.recipe.worker", str(launch.stage_dir)]
    return {"driver": os.getpid(), "command": command, "ranks": ranks, "grace_s": GRACE_S, "settle_s": SETTLE_S}


@contextlib.contextmanager
def _guarded(specification: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """A guardian at work; however the block ends, so do the guardian and all below it."""
    process = subprocess.Popen([sys.executable, "-P", guardian.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdin
    try:
        process.stdin.write(json.dumps(specification).encode() + b"\n")
        process.stdin.flush()
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"stop\n")
            process.stdin.flush()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()  # its ranks die with it
            process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        assert process.stdout
        process.stdout.close()


def _end_sessions(pids: list[int]) -> None:
    """Kill what is left of the ranks' sessions when the guardian, who would have done it, was killed."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) in pids:
                process.kill()


def _open_logs(launch: Launch) -> list[int]:
    """Create the ranks' logs, mark the attempt's beginning in each, and return where it is. Removes the errors of earlier attempts."""
    starts = []
    launch.log(0).parent.mkdir(exist_ok=True)
    for old in launch.log(0).parent.glob("rank*.error.json"):
        old.unlink()
    for rank in range(launch.world_size):
        with launch.log(rank).open("a", encoding="utf-8") as file:
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            file.write(f"--- {now} attempt {launch.epoch}, rank {rank} of {launch.world_size}\n")
            file.flush()
            starts.append(file.tell())
    return starts


def _check_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return port
        except OverflowError:
            raise UserError(f"cluster.master_port={port}: a port is at most 65535; leave the key unset and a free one is chosen") from None
        except OSError as error:
            why = "is in use on this machine" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise UserError(f"cluster.master_port={port}: this port {why}; choose another, or leave the key unset "
                            "and a free one is chosen") from error


def _free_port() -> int:
    """A free port below the range from which the kernel serves outgoing connections, so that it stays free until rank 0 takes it."""
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    below = int(ephemeral.read_text().split()[0]) if ephemeral.exists() else 32768
    candidates = range(10000, below) if below > 12000 else range(10000, 32768)
    for port in random.SystemRandom().sample(candidates, k=100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise R1MegaError("no free port found between 10000 and the ephemeral range; name one with cluster.master_port=")


def _diagnose(launch: Launch, failures: list[dict[str, Any]], starts: list[int]) -> R1MegaError:
    """The error of the rank that failed first: one killed by a signal before one that lost its peer, else the earliest report."""
    def order(failure: dict[str, Any]) -> tuple[bool, float]:
        return failure["returncode"] >= 0, failure["error"]["time"] if failure["error"] else float("inf")

    first = min(failures, key=order)
    rank, code, error = first["rank"], first["returncode"], first["error"]
    if error and error["exit_code"] == UserError.exit_code:
        return UserError(error["message"])
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        hint = ", which is also how the kernel ends a process when memory runs out" if -code == signal.SIGKILL else ""
        what = f"was killed by signal {-code} ({name}{hint})"
    else:
        what = f"failed: {error['kind']}: {error['message']}" if error else f"ended with exit status {code}"
    last = "" if error or code == -signal.SIGKILL else _last_line(launch.log(rank), starts[rank])  # nobody is told of SIGKILL and says why
    tail = f"; its last words: {last}" if last else ""
    return StageFailed(f"stage '{launch.name}': rank {rank} of {launch.world_size} {what}{tail}. Log: {launch.log(rank)}")


def _last_line(log: Path, start: int) -> str:
    """The last line with something in it that a rank wrote since `start`."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 8192))
        lines = _ANSI.sub("", file.read().decode(errors="replace")).splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
