"""Programs against tests: right, wrong, slow, greedy and hostile ones, each in its own process."""

from __future__ import annotations

import json
import time
from typing import Any

import psutil
import pytest
from r1mega_plugins.rewards.code_tests import CodeTests, CodeTestsConfig

from r1mega.rewards.solutions import Case, Limits, code_in, first_failure, same_output
from r1mega.types import RewardSample

SUM = [Case("1 2\n", "3\n", False), Case("5 6\n", "11", False)]


def run(code: str, cases: list[Case] = SUM, function: str = "", **limits: Any) -> str:
    return first_failure(code, cases, function, Limits(**{"seconds": 5.0, "memory_mb": 512, **limits}))


def test_programs_that_read_standard_input() -> None:
    assert run("a, b = map(int, input().split())\nprint(a + b)") == ""
    assert run("if __name__ == '__main__':\n    import sys\n    print(sum(map(int, sys.stdin.read().split())))\n    sys.exit(0)") == ""
    assert run("print(3)") == "test 2 of 2: wrong output"
    assert "SyntaxError" in run("print(")
    assert "exit status 3" in run("raise SystemExit(3)")
    assert "ZeroDivisionError" in run("1/0")


def test_functions() -> None:
    cases = [Case('[1, 2]\n"x"', '["x", 3]', True)]
    assert run("class Solution:\n    def f(self, a: List[int], b: str):\n        return b, sum(a)", cases, "f") == "", "typing is there without an import"
    assert run("def f(a, b):\n    print('noise')\n    return [b, pow(3, 1, 5)]", cases, "f") == "", "printing does not disturb, pow is the built-in one"
    assert run("def f(a, b): return [b, 4]", cases, "f") == "test 1 of 1: wrong result"
    assert "KeyError" in run("def g(): pass", cases, "f")


def test_time_memory_and_output_are_limited() -> None:
    began = time.monotonic()
    assert run("while True: pass", seconds=0.5) == "test 1 of 2: longer than 0.5 s"
    assert run("import time\ntime.sleep(60)", seconds=0.5) == "test 1 of 2: longer than 0.5 s"
    assert time.monotonic() - began < 10
    assert "MemoryError" in run("x = bytearray(1 << 30)")
    assert run("import os\nwhile True: os.write(1, b'x' * 1048576)").startswith("test 1 of 2: exit status")


def test_children_are_killed_with_a_program_that_is_too_slow() -> None:
    mark = "r1mega-test-child-of-a-solution"
    assert "longer than" in run(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])", seconds=1.0)
    assert not [process.pid for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or ())]


def test_a_program_sees_neither_the_environment_nor_the_expected_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "42")
    spy = "import os\nprint(os.environ.get('SOME_SECRET'), os.listdir('.'), sorted(os.listdir('..')))"
    assert run(spy, [Case("", "None [] ['errors', 'input', 'output', 'solution.py', 'work']", False)]) == ""


@pytest.mark.parametrize(("given", "expected", "same"), [
    ("3 \n\n", "3", True), ("a\nb", "a\nb\n", True), ("a b", "a  b", False), ("1.0 2", "1 2.0", True), ("0.3333333333333", "0.33333333333333331", True),
    ("1 2", "1 2 3", False),
    ("YES", "yes", False), ("", "0", False), ("nan", "nan", True), ("inf", "1", False)])
def test_outputs_are_compared_line_by_line(given: str, expected: str, same: bool) -> None:
    assert same_output(given, expected) == same


def test_the_last_code_block_counts() -> None:
    assert code_in("```python\na\n```\nBetter:\n```py\nb\n```") == "b\n"
    assert code_in("no code") is None


def test_reward() -> None:
    reward = CodeTests(CodeTestsConfig(seconds=5.0, memory_mb=512))
    metadata = {name: json.dumps([{"input": case.input, "output": case.output}])
                for name, case in zip(("public_test_cases", "private_test_cases"), SUM, strict=True)}

    def score(completion: str, **more: Any) -> tuple[float, str]:
        found, = reward.score([RewardSample("q", completion, metadata={**metadata, **more})])
        return found.value, found.explanation

    assert score("<think>```python\nprint(0)\n```</think>\n```python\nprint(sum(map(int, input().split())))\n```") == (1.0, "")
    assert score("```python\nprint(3)\n```") == (0.0, "test 2 of 2: wrong output"), "hidden tests count"
    assert score("<think>```python\nprint(3)\n```") == (0.0, "no code block after the reasoning")
    with pytest.raises(ValueError, match="has no tests"):
        reward.score([RewardSample("q", "```\nx\n```")])
