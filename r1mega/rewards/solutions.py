"""Programs that a model wrote: found in its reply, run against tests in a process of their own, their output compared.

What isolation this is: every test runs in a fresh Python process (`solution_runner.py`) in an empty temporary folder, without the environment's
variables and without the expected output, under limits on address space, processor time, file size and open files, and is killed with its children
when its wall-clock time is over. What it is NOT: a sandbox. The program has the user's rights: it can read the user's files, write outside its folder
and reach the network; as root the limits can be raised again. Run it where that does not matter, such as a container without secrets.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

RUNNER = Path(__file__).with_name("solution_runner.py")
MAX_TESTS_BYTES = 1 << 30  # of one problem's tests, unpacked
MAX_OUTPUT_BYTES = 1 << 26
_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)


class TestsError(ValueError):
    """Stored tests that cannot be read."""

    __test__ = False  # pytest takes a class of this name for tests


@dataclass(frozen=True, slots=True)
class Case:
    """One test. Of a functional one, `input` is one JSON value a line, each an argument, and `output` is the JSON of the result."""

    input: str
    output: str
    functional: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use for one test."""

    seconds: float = 6.0  # wall clock; processor time is limited to the next whole second
    memory_mb: int = 1024


class _PlainUnpickler(pickle.Unpickler):
    """Reads only built-in data (text, lists, dicts, numbers): without a way to name a class or function, a pickle can run no code."""

    def find_class(self, module: str, name: str) -> Any:
        raise TestsError(f"the pickle names {module}.{name}; only plain data is read, since anything else could run code")


def read_tests(stored: str) -> list[Case]:
    """Tests as LiveCodeBench stores them: a JSON list of {"input", "output", "testtype"}, or that list, pickled as text, zlib-compressed, in base64.

    A pickle with anything in it but plain data is refused, not loaded. Raises `TestsError`.
    """
    try:
        tests = json.loads(stored)
    except ValueError:
        tests = _unpacked(stored)
    if not isinstance(tests, list):
        raise TestsError(f"expected a list of tests, got {type(tests).__name__}")
    return [_case(test, number) for number, test in enumerate(tests, start=1)]


def _unpacked(stored: str) -> Any:
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(stored, validate=True), MAX_TESTS_BYTES)
        if inflate.unconsumed_tail:
            raise TestsError(f"the tests are larger than {MAX_TESTS_BYTES >> 20} MiB")
        value = _PlainUnpickler(io.BytesIO(data)).load()
        return json.loads(value) if isinstance(value, str | bytes) else value
    except TestsError:
        raise
    except (binascii.Error, zlib.error) as error:
        raise TestsError(f"neither JSON nor base64 of compressed data ({error})") from error
    except Exception as error:  # pickle and json raise many kinds on damaged data
        raise TestsError(f"the compressed tests cannot be read: {type(error).__name__}: {error}") from error


def _case(test: Any, number: int) -> Case:
    if not isinstance(test, dict) or not all(isinstance(test.get(name), str) for name in ("input", "output")):
        raise TestsError(f"test {number} must have the texts 'input' and 'output'")
    kind = test.get("testtype", "stdin")
    if kind not in ("stdin", "functional"):
        raise TestsError(f"test {number}: testtype must be stdin or functional, got {kind!r}")
    return Case(test["input"], test["output"], kind == "functional")


def code_in(reply: str) -> str | None:
    """The last fenced code block of a reply, None without one."""
    blocks = _FENCE.findall(reply)
    return blocks[-1] if blocks and blocks[-1].strip() else None


def first_failure(code: str, cases: Sequence[Case], function: str, limits: Limits) -> str:
    """Run the code on the cases in turn until one fails: which and how; empty when all pass."""
    with tempfile.TemporaryDirectory(prefix="r1mega-solution-") as name:
        for number, case in enumerate(cases, start=1):
            fault = _run(code, case, function, limits, Path(name) / str(number))
            if fault:
                return f"test {number} of {len(cases)}: {fault}"
    return ""


def _run(code: str, case: Case, function: str, limits: Limits, folder: Path) -> str:
    work = folder / "work"  # the program's own folder; what we read and write is beside it
    work.mkdir(parents=True)
    (folder / "solution.py").write_text(code, encoding="utf-8", errors="replace")
    (folder / "input").write_text(case.input, encoding="utf-8", errors="replace")
    result = folder / "result"
    command = [sys.executable, "-I", "-X", "utf8", str(RUNNER), str(folder / "solution.py"), str(result), function if case.functional else "",
               str(limits.memory_mb), str(math.ceil(limits.seconds)), str(MAX_OUTPUT_BYTES)]
    environment = {"PATH": os.defpath, "HOME": str(work), "TMPDIR": str(work), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with (folder / "input").open("rb") as stdin, (folder / "output").open("wb") as stdout, (folder / "errors").open("wb") as stderr:
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, cwd=work, env=environment)
        try:
            code_returned = process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            return f"longer than {limits.seconds:g} s"
        finally:
            _end(process)
    if code_returned:
        said = (folder / "errors").read_bytes()[-2000:].decode(errors="replace").strip()
        return f"exit status {code_returned}: {said.rpartition(chr(10))[2][:200]}"
    if not case.functional:
        return "" if same_output((folder / "output").read_text("utf-8", "replace"), case.output) else "wrong output"
    return "" if result.is_file() and _same_result(result.read_text("utf-8", "replace"), case.output) else "wrong result"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a program and the processes it started. They stay in the worker's process group, whose keeper kills the rest."""
    import psutil  # type: ignore[import-untyped]

    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.kill()
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def same_output(given: str, expected: str) -> bool:
    """Line by line without trailing spaces and empty lines at the end; numbers may be written in another way (1.0 for 1, up to 1e-9 of their size)."""
    lines, wanted = _lines(given), _lines(expected)
    return len(lines) == len(wanted) and all(left == right or _same_numbers(left.split(), right.split()) for left, right in zip(lines, wanted, strict=True))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.rstrip().splitlines()]


def _same_numbers(left: Sequence[str], right: Sequence[str]) -> bool:
    try:
        numbers = [(Decimal(one), Decimal(other)) for one, other in zip(left, right, strict=True)]
        return all(one == other or abs(one - other) <= abs(other) * Decimal("1e-9") for one, other in numbers)
    except (InvalidOperation, ValueError):
        return False


def _same_result(given: str, expected: str) -> bool:
    try:
        return _same_value(json.loads(given), json.loads(expected))
    except (ValueError, RecursionError):
        return False


def _same_value(given: Any, wanted: Any) -> bool:
    if isinstance(given, list) and isinstance(wanted, list):
        return len(given) == len(wanted) and all(map(_same_value, given, wanted))
    if isinstance(given, float) or isinstance(wanted, float):
        return isinstance(given, int | float) and isinstance(wanted, int | float) and math.isclose(given, wanted, rel_tol=1e-9)
    return bool(given == wanted)
