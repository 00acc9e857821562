"""The process that runs one solution on one test: sets its own limits, then executes the program. Started by `solutions.py`, with Python's library alone.

Arguments: solution file, result file, function name (empty: a program that reads standard input), memory in MiB, seconds of processor time, largest
file in bytes. A functional test's arguments are on standard input, one JSON value a line; the result is written as JSON.
"""

import json
import resource
import sys
from typing import Any

# What contest sites offer without an import.
PRELUDE = """\
from typing import *
import bisect, collections, functools, heapq, itertools, math, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from builtins import pow
"""  # the last one because math's pow takes no modulus


def limit(kind: int, amount: int) -> None:
    """Lower a limit for good; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(kind, (amount, amount))


def main(solution: str, result: str, function: str, memory_mb: str, seconds: str, file_bytes: str) -> None:
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, 64)
    limit(resource.RLIMIT_FSIZE, int(file_bytes))
    limit(resource.RLIMIT_CPU, int(seconds))
    limit(resource.RLIMIT_AS, int(memory_mb) << 20)
    sys.setrecursionlimit(50_000)
    with open(solution, encoding="utf-8") as file:
        program = compile(file.read(), "solution.py", "exec")
    names: dict[str, Any] = {"__name__": "__main__"}
    if not function:
        exec(program, names)
        return
    names["__name__"] = "solution"
    exec(PRELUDE, names)
    arguments = [json.loads(line) for line in sys.stdin.read().splitlines() if line.strip()]
    exec(program, names)
    owner = names["Solution"]() if "Solution" in names else None
    value = (getattr(owner, function) if owner is not None else names[function])(*arguments)
    with open(result, "w", encoding="utf-8") as file:
        json.dump(value, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
