"""The rollout ledger: exact round trips, every way a file can be torn, a disk that is full, a superseded writer."""

from __future__ import annotations

import logging
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from r1mega.errors import R1MegaError, StageFailed
from r1mega.rollout.codec import CorruptUnitError, decode, encode
from r1mega.rollout.ledger import Ledger
from r1mega.types import Completion, EncodedPrompt, Prompt, RolloutGroup, ScoredGroup

METADATA = {"tuple": (1, (2.5, "x")), "set": {3, 1}, "bytes": b"\x00\xff", "keys": {1: "one", (2, 3): None}, "": {"empty": "key"},
            "list": [True, None, 0.1], "nested": {"a": {"b": [1]}}}


def make_group(name: str, lengths: list[int], *, seed: int = 0, exact32: bool = False) -> ScoredGroup:
    rng = np.random.default_rng(seed)
    completions = []
    for k, length in enumerate(lengths):
        logprobs = -rng.exponential(size=length)
        logprobs = logprobs.astype(np.float32).astype(np.float64) if exact32 else logprobs
        tokens = tuple(rng.integers(0, 129280, length).tolist())
        reason = "stop" if k % 2 else "length"
        completions.append(Completion(f"{name}#{k}", tokens, tuple(logprobs.tolist()), f"réponse {k}\n<think>", reason, 7))
    count = len(lengths)
    prompt = EncodedPrompt(Prompt(name, "3+5?", "8", "math", "en", "arithmetic", METADATA), "User: 3+5?", (1, 2, 3))
    return ScoredGroup(RolloutGroup(prompt, tuple(completions)), tuple(rng.random(count).tolist()),
                       {"format": tuple(rng.random(count).tolist()), "accuracy": (0.1,) * count}, tuple(k != 1 for k in range(count)))


def bits(values: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


def test_a_unit_comes_back_bit_for_bit(tmp_path: Path) -> None:
    groups = (make_group("a", [5, 0, 300], seed=1), make_group("b", [1], seed=2))
    ledger = Ledger(tmp_path, replica=3)
    ledger.commit(4, 2, groups)
    loaded = Ledger(tmp_path, replica=3).load(4, 2)
    assert loaded == groups
    for given, got in zip(groups, loaded, strict=True):
        assert bits(given.rewards) == bits(got.rewards)
        assert list(given.parts) == list(got.parts), "the order of reward terms changed"
        for one, two in zip(given.group.completions, got.group.completions, strict=True):
            assert bits(one.logprobs) == bits(two.logprobs)
            assert all(type(token) is int for token in two.tokens)
        assert type(got.group.prompt.prompt.metadata["tuple"]) is tuple


def test_special_floats_and_large_ids_survive() -> None:
    odd = (-0.0, 5e-324, float("-inf"), 1e300, 0.1)
    completion = Completion("x#0", (0, 2**40, 65535, 65536, 1), odd, "", "stop", 0)
    given = ScoredGroup(RolloutGroup(EncodedPrompt(Prompt("x", "q"), "", ()), (completion,)), (float("nan"),), {}, (False,))
    (got,) = decode(encode([given]))
    assert bits(got.group.completions[0].logprobs) == bits(odd)
    assert got.group.completions[0].tokens == completion.tokens
    assert np.isnan(got.rewards[0])


def test_an_empty_unit_is_a_unit(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 0)
    ledger.commit(1, 0, ())
    assert ledger.load(1, 0) == ()


def test_float32_logprobs_take_eight_bytes_a_token() -> None:
    one, two = (len(encode([make_group("a", [length], exact32=True)])) for length in (1000, 11000))
    assert abs(two - one - 10000 * 8) < 16, "log-probs that are exact in float32 were stored wider"


def test_any_truncation_and_any_flipped_byte_is_detected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = encode([make_group("a", [5, 3])])
    for size in range(len(data)):
        with pytest.raises(CorruptUnitError):
            decode(data[:size])
    for at in range(len(data)):
        with pytest.raises(CorruptUnitError):
            decode(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
    with pytest.raises(CorruptUnitError):
        decode(data + b"\0")

    ledger = Ledger(tmp_path, 0)
    ledger.commit(1, 0, (make_group("a", [5, 3]),))
    (path,) = tmp_path.rglob("*.bank")
    for size in (0, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert ledger.load(1, 0) is None
        assert "unit 0 of step 1 will be generated again" in caplog.text
        assert str(path) in caplog.text
    ledger.commit(1, 0, (make_group("a", [5, 3]),))
    assert ledger.load(1, 0) is not None, "a damaged unit could not be replaced"


def test_units_and_forgetting(tmp_path: Path) -> None:
    ledger, other = Ledger(tmp_path, 0), Ledger(tmp_path, 1)
    assert ledger.units(1) == []
    assert ledger.load(1, 0) is None
    for step, unit in ((1, 0), (2, 10), (2, 9), (3, 0)):
        ledger.commit(step, unit, ())
    other.commit(1, 5, ())
    half = ledger.folder / "step_00000003" / ".unit_000001.bank.1.tmp"
    half.write_bytes(b"r1mega-unit-1 ")
    assert ledger.units(2) == [9, 10]
    assert ledger.units(3) == [0], "a half written file counts as a unit"
    ledger.forget_before(3)
    assert (ledger.units(1), ledger.units(2), ledger.units(3)) == ([], [], [0])
    assert not half.exists()
    assert other.units(1) == [5], "another replica's unit was forgotten"
    ledger.forget_before(3)


def test_a_superseded_attempt_commits_nothing(tmp_path: Path) -> None:
    def superseded() -> None:
        raise StageFailed("attempt 1 has been superseded")

    Ledger(tmp_path, 0).commit(1, 0, (make_group("new", [2]),))
    with pytest.raises(StageFailed, match="superseded"):
        Ledger(tmp_path, 0, before_rename=superseded).commit(1, 0, ())
    loaded = Ledger(tmp_path, 0).load(1, 0)
    assert loaded is not None
    assert loaded[0].group.prompt.prompt.id == "new"
    assert not list(tmp_path.rglob("*.tmp"))


def _commit_under_a_size_limit(folder: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    ledger = Ledger(Path(folder), 0)
    ledger.commit(1, 0, (make_group("small", [10]),))
    try:
        ledger.commit(1, 1, (make_group("large", [100_000]),))
    except R1MegaError as error:
        print(error)


def test_a_full_disk_is_a_clear_error_and_leaves_no_half_file(tmp_path: Path) -> None:
    """The kernel refuses to write past 4 KiB, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "cannot bank rollouts in" in done.stdout
    assert "unit_000001.bank" in done.stdout
    assert "Free space there and run the same command again" in done.stdout
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["unit_000000.bank"]
    assert Ledger(tmp_path, 0).units(1) == [0]


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "replica_00000").write_text("a file where the folder should be")
    with pytest.raises(R1MegaError, match=r"cannot bank rollouts in .*replica_00000"):
        Ledger(tmp_path, 0).commit(1, 0, ())


def test_metadata_that_cannot_be_kept_is_named(tmp_path: Path) -> None:
    scored = ScoredGroup(RolloutGroup(EncodedPrompt(Prompt("p7", "q", metadata={"when": object()}), "", ()), ()), (), {}, ())
    with pytest.raises(R1MegaError, match=r"metadata of prompt 'p7', key 'when': a builtins.object cannot be banked"):
        Ledger(tmp_path, 0).commit(1, 0, (scored,))
    assert not list(tmp_path.rglob("*.bank"))


def test_a_kill_during_commits_leaves_only_whole_units(tmp_path: Path) -> None:
    """A process that commits as fast as it can is killed; whatever is there loads."""
    program = ("import sys; from pathlib import Path; from test_ledger import make_group; from r1mega.rollout.ledger import Ledger\n"
               "ledger, groups = Ledger(Path(sys.argv[1]), 0), (make_group('a', [50_000]),)\n"
               "for unit in range(10_000):\n    ledger.commit(1, unit, groups); print(unit, flush=True)")
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)})
    assert process.stdout is not None
    announced = [int(process.stdout.readline()) for _ in range(5)][-1]
    process.kill()
    announced = max([announced, *map(int, process.stdout.read().split())])
    process.wait()
    ledger = Ledger(tmp_path, 0)
    there = ledger.units(1)
    assert there[: announced + 1] == list(range(announced + 1)), "an announced unit is not there"
    assert all(ledger.load(1, unit) is not None for unit in there)


if __name__ == "__main__":
    _commit_under_a_size_limit(sys.argv[1])
