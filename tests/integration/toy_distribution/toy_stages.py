"""An installed outside plugin for the launcher's tests: a stage that counts, and can be told to misbehave in ways that real stages do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from r1mega import hookimpl
from r1mega.config import ClusterConfig, ParallelConfig
from r1mega.errors import UserError
from r1mega.hookspecs import Register
from r1mega.recipe.context import StageContext


@dataclass(frozen=True)
class CountConfig:
    seed: int = 0
    add: int = 1
    act: str = "count"
    path: str = ""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


class Count:
    """Adds to the number it is given."""

    version = "1"
    inputs: ClassVar[Mapping[str, str]] = {"number": "SampleSet?"}
    outputs: ClassVar[Mapping[str, str]] = {"number": "SampleSet"}

    def __init__(self, config: CountConfig) -> None:
        self.config = config

    def run(self, context: StageContext) -> Mapping[str, Any]:
        getattr(self, self.config.act)(context)
        start = int((context.inputs["number"] / "number.txt").read_text()) if "number" in context.inputs else 0
        if context.rank == 0:
            print(f"counting from {start}")
            context.output("number").mkdir(parents=True, exist_ok=True)
            (context.output("number") / "number.txt").write_text(str(start + self.config.add))
        environment = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")}
        (context.dir / f"environment{context.rank}.json").write_text(json.dumps(environment))
        return {"number": start + self.config.add}

    def count(self, context: StageContext) -> None:
        """Nothing unusual."""

    def mistake(self, context: StageContext) -> None:
        if context.rank == 1:
            raise UserError("data.jsonl:3: not JSON; fix the line")
        time.sleep(600)

    def crash(self, context: StageContext) -> None:
        if context.rank == 1:
            raise RuntimeError("the sky fell")
        time.sleep(600)

    def peer(self, context: StageContext) -> None:
        """Rank 1 is killed; rank 0, as with a broken connection, has failed just before."""
        if context.rank == 0:
            raise RuntimeError("connection reset by peer")
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    def superseded(self, context: StageContext) -> None:
        """While this attempt works, a newer one begins."""
        (context.dir / "epoch").write_text(str(context.epoch + 1))

    def forget(self, _: StageContext) -> None:
        """Every rank leaves early as if all were well."""
        raise SystemExit(0)

    def fill(self, context: StageContext) -> None:
        """Write until the disk is full."""
        with (context.dir / "large").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def wait(self, context: StageContext) -> None:
        """Wait for ever with a child in this rank's group and one that hides in a session of its own, and ignore polite requests to end."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
        children = [subprocess.Popen(sleeper), subprocess.Popen(sleeper, start_new_session=True)]
        ready = context.run_dir / f"ready{context.rank}.json"
        Path(f"{ready}.new").write_text(json.dumps({"rank": os.getpid(), "children": [child.pid for child in children]}))
        os.replace(f"{ready}.new", ready)
        time.sleep(600)


@hookimpl
def register_stages(register: Register) -> None:
    register("toy_count", Count, config=CountConfig)


@hookimpl
def config_search_path() -> str:
    return "pkg://toy_recipe_conf"


@hookimpl
def stage_end(run_dir: Path, stage: str, metrics: Mapping[str, Any]) -> None:
    with (run_dir / "observed.txt").open("a") as file:
        file.write(f"{stage} {metrics['number']}\n")
