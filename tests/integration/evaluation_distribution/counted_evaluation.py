"""An installed outside plugin for the tests of evaluations: generation that writes down every call it has finished, and dies in a chosen one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1mega_plugins.rollouts.megatron import MegatronRollout, MegatronRolloutConfig

from r1mega import hookimpl
from r1mega.hookspecs import Register, Tokenizer
from r1mega.types import Completion, GenerationRequest

if TYPE_CHECKING:
    from r1mega.policy.policy import Policy


class Counted(MegatronRollout):
    """Finished calls of a rank are lines of `$R1MEGA_TEST_CALLS/rank<r>.jsonl`, each the ids of its requests. `R1MEGA_TEST_KILL=<rank>:<call>` kills
    that rank with SIGKILL at the first completion of that call of its process."""

    version = "1"

    def __init__(self, config: MegatronRolloutConfig, *, policy: Policy, tokenizer: Tokenizer) -> None:
        super().__init__(config, policy=policy, tokenizer=tokenizer)
        self._calls, self._rank = 0, policy.ranks.rank

    def generate(self, requests: Sequence[GenerationRequest], on_finish: Callable[[Completion], Any]) -> None:
        def finish(completion: Completion) -> None:
            if os.environ.get("R1MEGA_TEST_KILL") == f"{self._rank}:{self._calls}":
                os.kill(os.getpid(), signal.SIGKILL)
            on_finish(completion)

        super().generate(requests, finish)
        self._calls += 1
        with (Path(os.environ["R1MEGA_TEST_CALLS"]) / f"rank{self._rank}.jsonl").open("a") as file:
            file.write(json.dumps([request.id for request in requests]) + "\n")


@hookimpl
def register_rollouts(register: Register) -> None:
    register("counted", Counted, config=MegatronRolloutConfig)


@hookimpl
def config_search_path() -> str:
    return "pkg://evaluation_conf"
