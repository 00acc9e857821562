"""Processes of one job on this machine, for tests of collectives."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path


def run_ranks(world: int, command: list[str], out: Path) -> None:
    """Run one process per rank to its end, with its output in `out`/rank<i>.log. Fails with the output of the first rank that failed, or after 420 s."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logs = [(out / f"rank{rank}.log").open("w+") for rank in range(world)]
    ranks = [subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=log, stderr=subprocess.STDOUT)
             for rank, log in enumerate(logs)]
    try:
        deadline = time.monotonic() + 420
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        codes = [rank.poll() for rank in ranks]
        for process in ranks:
            process.kill()
            process.wait()
    for rank, (code, log) in enumerate(zip(codes, logs, strict=True)):
        log.seek(0)
        text = log.read()
        log.close()
        done = len(list(out.glob(f"*-rank{rank}.pt")))
        assert code in (0, None), f"{world} processes: rank {rank} ended with exit code {code} after {done} results:\n{text[-3000:]}"
    assert codes == [0] * world, f"{world} processes: ranks {[rank for rank, code in enumerate(codes) if code is None]} did not end in time"
