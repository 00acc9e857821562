"""A rank's entry: what reaches console and log, how an exception is told; and the launcher's choice of whom to blame."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from r1mega.config import ClusterConfig
from r1mega.errors import DataError, StageFailed, UserError
from r1mega.recipe import launcher
from r1mega.recipe.worker import Tee, describe


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_tee_shows_all_and_logs_what_lasts() -> None:
    console, log = Terminal(), io.StringIO()
    tee = Tee(console, log)
    for text in ("\x1b[32mgreen\x1b[0m\n", "\x1b[2K\x1b[1A 50%", "\r100%", "windows\r\n", "plain\n"):
        assert tee.write(text) == len(text)
    assert console.getvalue() == "\x1b[32mgreen\x1b[0m\n\x1b[2K\x1b[1A 50%\r100%windows\r\nplain\n"
    assert log.getvalue() == "green\nwindows\r\nplain\n"
    assert tee.isatty()


def test_rich_progress_draws_through_the_tee() -> None:
    from rich.console import Console
    from rich.progress import Progress

    terminal, log = Terminal(), io.StringIO()
    console = Console(file=Tee(terminal, log), force_terminal=True, width=60)  # type: ignore[arg-type]
    with Progress(console=console) as progress:
        progress.advance(progress.add_task("steps", total=2), 2)
    console.print("[bold]done[/bold]")
    assert "100%" in terminal.getvalue()
    assert "\x1b" not in log.getvalue()
    assert log.getvalue().endswith("done\n")


def test_full_disk_is_the_users_to_solve_wherever_it_hides(tmp_path: Path) -> None:
    try:
        try:
            with open("/dev/full", "w") as file:
                file.write("x" * 100000)
        except OSError as cause:
            raise RuntimeError("unexpected pos 64 vs 0") from cause
    except RuntimeError as error:
        told = describe(error, tmp_path)
    assert told["exit_code"] == 2
    assert told["message"].startswith("the disk is full")
    assert str(tmp_path) in told["message"]


@pytest.mark.parametrize(("error", "told"), [
    (DataError("a.jsonl:3: no"), {"kind": "DataError", "message": "a.jsonl:3: no", "exit_code": 2}),
    (ValueError("two\n  lines"), {"kind": "ValueError", "message": "two lines", "exit_code": 1}),
    (StageFailed("old"), {"kind": "StageFailed", "message": "old", "exit_code": 1}),
])
def test_other_errors_in_one_line(tmp_path: Path, error: Exception, told: dict[str, Any]) -> None:
    assert describe(error, tmp_path) == told


def failure(rank: int, returncode: int, message: str = "", time: float = 0.0, exit_code: int = 1) -> dict[str, Any]:
    error = {"kind": "RuntimeError", "message": message, "time": time, "exit_code": exit_code} if message else None
    return {"rank": rank, "returncode": returncode, "error": error}


@pytest.mark.parametrize(("failures", "kind", "said"), [
    ([failure(0, 1, "peer gone", 5.0), failure(1, -9)], StageFailed, "rank 1 of 2 was killed by signal 9 (SIGKILL"),
    ([failure(0, 1, "second", 5.0), failure(1, 1, "first", 4.0)], StageFailed, "rank 1 of 2 failed: RuntimeError: first"),
    ([failure(1, 3)], StageFailed, "rank 1 of 2 ended with exit status 3; its last words: last words"),
    ([failure(0, 2, "a.jsonl:3: no", 1.0, exit_code=2), failure(1, 1, "peer gone", 2.0)], UserError, "a.jsonl:3: no"),
    ([failure(0, -11)], StageFailed, "signal 11 (SIGSEGV)"),
])
def test_blame(tmp_path: Path, failures: list[dict[str, Any]], kind: type[Exception], said: str) -> None:
    launch = launcher.Launch("zero", tmp_path, 2, ClusterConfig(), 1)
    starts = launcher._open_logs(launch)
    for rank in range(2):
        with launch.log(rank).open("a") as log:
            log.write("\x1b[31mlast words\x1b[0m\n\n")
    error = launcher._diagnose(launch, failures, starts)
    assert type(error) is kind
    assert said in str(error)
    assert "SIGKILL" not in said or "last words" not in str(error), "whatever stood last in the log has nothing to do with the kill"


def test_ports() -> None:
    port = launcher._free_port()
    assert 10000 <= port < 65536
    assert launcher._check_port(port) == port
    with pytest.raises(UserError, match=r"cluster\.master_port=70000"):
        launcher._check_port(70000)


def test_slurm_clusters_are_not_run_here(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set cluster\.kind=local"):
        launcher.run(launcher.Launch("zero", tmp_path, 1, ClusterConfig(kind="slurm"), 1))


def test_threads_are_the_users_or_a_share_of_the_cores(tmp_path: Path) -> None:
    def threads(cluster: ClusterConfig, ranks: int) -> set[str]:
        specification = launcher._specification(launcher.Launch("zero", tmp_path, ranks, cluster, 1))
        return {rank["env"][name] for rank in specification["ranks"] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}

    assert threads(ClusterConfig(threads_per_rank=3), 2) == {"3"}
    assert threads(ClusterConfig(), 1) == {str(len(os.sched_getaffinity(0)))}
    assert threads(ClusterConfig(), 1000) == {"1"}
