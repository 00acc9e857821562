"""An installed outside plugin for the tests: `R1MEGA_TEST_KILL=<stage>:<step>` kills rank 0 of that stage with SIGKILL right after that step, once
per run folder."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from r1mega import hookimpl


@hookimpl
def step_end(run_dir: Path, stage: str, step: int) -> None:
    marker = run_dir / "killed"
    if os.environ.get("R1MEGA_TEST_KILL") == f"{stage}:{step}" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
