"""The driver with real processes: an installed outside plugin (`toy_distribution/`), the real command line, real signals.

Reads /proc, so Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(sys.platform != "linux", reason="watches processes through /proc")]
TOYS = Path(__file__).parent / "toy_distribution"
ENDED_WITHIN_S = 30


def command(run_dir: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "r1mega", "run", "recipe=toy", f"output_dir={run_dir}", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TOYS), "OMP_NUM_THREADS": "1"}


def run(run_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(run_dir, *arguments), env=environment(), capture_output=True, text=True, timeout=90)


@contextlib.contextmanager
def started(run_dir: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command(run_dir, *arguments), env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 40) -> float:
    """Seconds until `condition` held."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, f"after {seconds} s still not so: {what}"
        time.sleep(0.02)
    return time.monotonic() - begin


def waiting_ranks(run_dir: Path, ranks: int = 2) -> list[dict[str, list[int] | int]]:
    """The processes of a stage told to `wait`, once all ranks are there."""
    ready = [run_dir / f"ready{rank}.json" for rank in range(ranks)]
    wait_for("all ranks are waiting", lambda: all(path.exists() for path in ready))
    return [json.loads(path.read_text()) for path in ready]


def family(driver: int) -> list[psutil.Process]:
    """Everything below the driver; `Process.is_running` compares start times, so that a reused pid does not deceive."""
    found: list[psutil.Process] = psutil.Process(driver).children(recursive=True)
    return found


def gone(processes: list[psutil.Process]) -> bool:
    return not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def manifest(run_dir: Path, stage: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((run_dir / "stages" / stage / "current" / "manifest.json").read_text())
    return found


def test_runs_resumes_and_reruns_only_what_changed(tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    assert first.returncode == 0, first.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {name: (one["state"], one["metrics"]["number"]) for name, one in summary["stages"].items()} == {
        "one": ("done", 1), "two": ("done", 11), "three": ("done", 111)}
    assert (tmp_path / "run" / "observed.txt").read_text() == "one 1\ntwo 11\nthree 111\n", "stage_end is called once per stage, on rank 0"
    assert "counting from 11" in first.stderr, "rank 0 speaks on the console"
    seen = json.loads((tmp_path / "run/stages/two/current/environment1.json").read_text())
    assert (seen["RANK"], seen["WORLD_SIZE"], seen["LOCAL_RANK"], seen["MASTER_ADDR"]) == ("1", "2", "1", "127.0.0.1")
    assert int(seen["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)

    again = run(tmp_path / "run", "stages.three.add=200")
    assert again.returncode == 0, again.stderr
    assert "one: done before" in again.stderr
    assert "two: done before" in again.stderr
    assert "three: attempt 1 on 2 ranks (add: 100 -> 200)" in again.stderr
    assert len([folder for folder in (tmp_path / "run/stages/three").iterdir() if not folder.is_symlink()]) == 2, "the stale result is kept"


def test_killed_rank_is_named_and_takes_all_others_with_it(tmp_path: Path) -> None:
    with started(tmp_path, "stages.two.act=wait") as driver:
        ranks = waiting_ranks(tmp_path)
        processes = family(driver.pid)
        assert len(processes) >= 7, "guardian, two ranks and two children each"
        os.kill(int(ranks[1]["rank"]), signal.SIGKILL)  # type: ignore[arg-type]
        begin = time.monotonic()
        _, said = driver.communicate(timeout=ENDED_WITHIN_S)
        assert time.monotonic() - begin < ENDED_WITHIN_S
    assert driver.returncode == 1
    assert "stage 'two': rank 1 of 2 was killed by signal 9 (SIGKILL" in said
    assert "logs/rank1.log" in said
    assert gone(processes), "a process outlived its stage"
    assert manifest(tmp_path, "two")["state"] == "failed"


def test_killed_driver_leaves_no_orphan(tmp_path: Path) -> None:
    with started(tmp_path, "stages.two.act=wait") as driver:
        waiting_ranks(tmp_path)
        processes = family(driver.pid)
        driver.kill()
        took = wait_for("all below the killed driver are gone", lambda: gone(processes), ENDED_WITHIN_S)
    assert took < 5, "they end at once, without a grace period"
    resumed = run(tmp_path)
    assert resumed.returncode == 0, "the lock must have gone with its holder: " + resumed.stderr
    assert "one: done before" in resumed.stderr


def test_killed_guardian_leaves_no_orphan_in_the_ranks_sessions(tmp_path: Path) -> None:
    with started(tmp_path, "stages.two.act=wait") as driver:
        ranks = waiting_ranks(tmp_path)
        hidden = psutil.Process(ranks[0]["children"][1]), psutil.Process(ranks[1]["children"][1])  # type: ignore[index]
        processes = [process for process in family(driver.pid) if process not in hidden]
        psutil.Process(driver.pid).children()[0].kill()
        _, said = driver.communicate(timeout=ENDED_WITHIN_S)
        for process in hidden:  # in sessions of their own, without the guardian nobody knows them
            process.kill()
    assert driver.returncode == 1
    assert "the process that guards its ranks was killed" in said
    assert gone(processes)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_driver_ends_its_ranks_and_can_resume(tmp_path: Path, number: int, code: int) -> None:
    with started(tmp_path, "stages.two.act=wait") as driver:
        waiting_ranks(tmp_path)
        processes = family(driver.pid)
        driver.send_signal(number)
        driver.communicate(timeout=ENDED_WITHIN_S)
    assert driver.returncode == code
    assert gone(processes)
    assert manifest(tmp_path, "two")["state"] == "interrupted"


def test_mistake_found_by_a_rank_is_the_one_line_said(tmp_path: Path) -> None:
    result = run(tmp_path, "stages.two.act=mistake")
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].endswith("data.jsonl:3: not JSON; fix the line")
    assert "Traceback" not in result.stderr
    assert "Traceback" in (tmp_path / "stages/two/current/logs/rank1.log").read_text(), "the log keeps the whole story"
    report = json.loads((tmp_path / "stages/two/current/logs/rank1.error.json").read_text())
    assert (report["kind"], report["exit_code"]) == ("UserError", 2)


@pytest.mark.parametrize(("act", "said"), [
    ("crash", "rank 1 of 2 failed: RuntimeError: the sky fell"),
    ("peer", "rank 1 of 2 was killed by signal 9"),
    ("superseded", "attempt 1 of rank 0 has been superseded by attempt 2; it writes nothing more"),
    ("forget", "rank 0 wrote no result"),
])
def test_failed_stage_says_who_and_why(tmp_path: Path, act: str, said: str) -> None:
    result = run(tmp_path, f"stages.two.act={act}")
    assert result.returncode == 1, result.stderr
    assert said in result.stderr.splitlines()[-1]
    assert not (tmp_path / "stages/two/current/result.json").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["stages"]["two"]["state"] == "failed"


def test_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    with started(tmp_path, "stages.one.act=wait") as driver:
        waiting_ranks(tmp_path, ranks=1)
        second = run(tmp_path)
        assert second.returncode == 2
        assert f"process {driver.pid} on {socket.gethostname()}" in second.stderr
        status = subprocess.run([sys.executable, "-m", "r1mega", "status", str(tmp_path), "--json"],
                                env=environment(), capture_output=True, text=True)
        states = {name: one["state"] for name, one in json.loads(status.stdout)["stages"].items()}
        assert states == {"one": "running", "two": "pending", "three": "pending"}


def test_port_in_use_is_named_with_its_key(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run(tmp_path, f"cluster.master_port={port}")
    assert result.returncode == 2
    assert f"cluster.master_port={port}: this port is in use" in result.stderr.splitlines()[-1]


def test_dry_run_and_selection(tmp_path: Path) -> None:
    dry = run(tmp_path, "--dry-run")
    assert dry.returncode == 0
    assert " ".join(dry.stdout.splitlines()[1].split()) == "two run toy_count, 2 ranks: input number: one has to run first"
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
    early = run(tmp_path, "--only", "two")
    assert early.returncode == 2
    assert "stage 'two' cannot run yet: input number: one has to run first" in early.stderr
    assert run(tmp_path, "--only", "one").returncode == 0
    assert run(tmp_path, "--from", "two").returncode == 0
    plan = run(tmp_path, "--dry-run").stdout.split("\n\n")[0]  # the settings follow
    assert [line.split()[1] for line in plan.splitlines()] == ["skip", "skip", "skip"]


def test_damaged_input_is_noticed_before_use_and_made_again_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(folder, "--only", "one").returncode == 0
    number = folder / "stages/one/current/artifacts/number/number.txt"
    number.write_text("2")
    result = run(folder)
    assert result.returncode == 1
    assert "stage 'two' needs one.number" in result.stderr
    assert "artifacts/number/number.txt is damaged" in result.stderr
    assert f"r1mega run recipe=toy output_dir={folder} --rebuild-damaged" in result.stderr
    dry = run(folder, "--rebuild-damaged", "--dry-run")
    assert dry.stdout.split()[:2] == ["one", "rebuild"]
    assert number.read_text() == "2", "a dry run moves nothing"
    mended = run(folder, "--rebuild-damaged")
    assert mended.returncode == 0, mended.stderr
    assert "one: made again with the same digests" in mended.stderr
    assert number.read_text() == "1"
    (aside,) = folder.glob("stages/one/*.aside-*/artifacts/number/number.txt")
    assert aside.read_text() == "2", "nothing is deleted"
    assert manifest(folder, "one")["epoch"] == 2
    assert "no result is damaged" in run(folder, "--rebuild-damaged").stderr


def test_a_stage_that_is_named_begins_anew_and_what_it_changes_follows(tmp_path: Path) -> None:
    counted = tmp_path / "run/stages/one/current/rollouts"
    assert run(tmp_path / "run").returncode == 0
    counted.mkdir()
    before = manifest(tmp_path / "run", "two")
    again = run(tmp_path / "run", "--rebuild", "one", "--only", "three")
    assert again.returncode == 0, again.stderr
    assert not counted.exists(), "what the stage left is set aside with its result"
    assert (manifest(tmp_path / "run", "one")["epoch"], manifest(tmp_path / "run", "two")) == (2, before)
    unknown = run(tmp_path / "run", "--rebuild", "on")
    assert unknown.returncode == 2
    assert "no stage 'on'. Did you mean 'one'?" in unknown.stderr


def test_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(tmp_path / "file" / "run")
    assert result.returncode == 2
    assert "a file stands where a folder is needed" in result.stderr
    read_only = run(Path("/proc/run"))  # not even root can make a folder there
    assert read_only.returncode == 2
    assert len(read_only.stderr.splitlines()) == 1


def test_rank_without_room_on_disk_is_a_user_error(tmp_path: Path) -> None:
    """A real disk, full to the last block: neither the log nor the manifest can be written any more, and still the reason comes through."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (that takes root)")
    try:
        result = run(tmp_path, "stages.two.act=fill")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert result.returncode == 2, result.stderr
    assert "the disk is full" in result.stderr.splitlines()[-1]
    assert "make room and run again" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
