"""A training process killed outright leaves no reward worker and nothing a reward started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

# Scores samples whose reward starts a child and then hangs, in Python or in C, and reports every process there is.
TRAINER = textwrap.dedent("""
    import json, os, sys, time
    import psutil
    from r1mega.config import RewardTerm
    from r1mega.rewards.pool import RewardPool
    from r1mega.types import RewardSample

    sys.path.append(sys.argv[1])
    pool = RewardPool({"stuck": RewardTerm("stuck")}, workers=2, batch_size=1)
    pool.submit("0", RewardSample("q", "warm")); pool.finish()
    bystander = os.fork() if sys.argv[2] == "fork" else None  # like an asynchronous checkpoint: holds copies of every pipe
    if bystander == 0:
        time.sleep(60)
        os._exit(0)
    for key, what in (("1", "sleep"), ("2", "in C")):
        pool.submit(key, RewardSample("q", what))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pool.poll()
        family = [child for keeper in pool.pids() for child in psutil.Process(keeper).children(recursive=True)]
        if sum(child.name() == "sleep" for child in family) == 2:
            break
        time.sleep(0.05)
    print(json.dumps({"pids": pool.pids() + [child.pid for child in family], "bystander": bystander}), flush=True)
    time.sleep(600)
""")

STUCK = textwrap.dedent("""
    import re, subprocess, time
    import r1mega
    from r1mega.types import Score

    class Stuck:
        '''Starts a child and hangs.'''
        version = "1"
        def score(self, samples):
            if samples[0].completion != "warm":
                subprocess.Popen(["sleep", "1000"])
                time.sleep(1000) if samples[0].completion == "sleep" else re.match(r"(a+)+$", "a" * 60 + "b")
            return [Score(1.0) for _ in samples]

    @r1mega.hookimpl
    def register_rewards(register):
        register("stuck", Stuck)
""")


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="relies on the parent-death signal")
@pytest.mark.parametrize("bystander", ["none", "fork"])
def test_kill_9_of_the_training_process_leaves_nothing_behind(tmp_path: Path, bystander: str) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    info = tmp_path / "stuck-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stuck\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[r1mega]\nstuck = stuck\n")
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(tmp_path), bystander], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    told = json.loads(trainer.stdout.readline())
    try:
        assert len(told["pids"]) == 6, "two workers, each a keeper, a scorer and the reward's child"
        assert all(map(runs, told["pids"]))
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
        deadline = time.monotonic() + 10
        while (left := [pid for pid in told["pids"] if runs(pid)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == []
    finally:
        trainer.kill()
        trainer.stdout.close()
        for pid in [*told["pids"], *([told["bystander"]] if told["bystander"] else [])]:
            if runs(pid):
                os.kill(pid, signal.SIGKILL)
