"""What a stage plugin is given when it runs on a rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1mega.errors import StageFailed

SCRATCH = "scratch"  # in a stage's folder


@dataclass(frozen=True)
class StageContext:
    """One rank's view of the attempt under way. `rank`, `world_size` and `local_rank` are the process group's.

    `dir` is `stages/<name>/<fingerprint>/`; a stage writes only below it. `inputs` maps an input name to the artifact's folder, absent where an
    optional input is not connected. Only rank 0 writes metrics.
    """

    name: str  # the node's name in the recipe
    config: Any  # the stage plugin's dataclass instance
    run_dir: Path
    dir: Path
    inputs: Mapping[str, Path]
    rank: int
    world_size: int
    local_rank: int
    epoch: int  # of this attempt; outputs are renamed into place only while it is the newest (see `commit`)
    options: Mapping[str, Any] = field(default_factory=dict)

    def output(self, name: str) -> Path:
        """The folder of output artifact `name`."""
        return self.dir / "artifacts" / name

    @property
    def checkpoints(self) -> Path:
        return self.dir / "checkpoints"

    @property
    def rollouts(self) -> Path:
        return self.dir / "rollouts"

    @property
    def scratch(self) -> Path:
        """For what is of no use once the stage is done: the driver removes it when it has recorded the outputs, not before."""
        return self.dir / SCRATCH

    def check_epoch(self) -> None:
        """Raise `StageFailed` if a newer attempt has begun: called right before every rename of an output, so that a rank that
        outlived its attempt cannot overwrite a newer one's work."""
        current = int((self.dir / "epoch").read_text())
        if current != self.epoch:
            raise StageFailed(f"stage '{self.name}': attempt {self.epoch} of rank {self.rank} has been superseded by attempt {current}; "
                              "it writes nothing more")
