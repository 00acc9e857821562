"""Results that are to be made again although they are done: those that somebody names, and those whose bytes are not what they were.

Nothing is deleted: what was there is renamed to `stages/<name>/<fingerprint>.aside-<n>`. A stage that is named begins anew, its checkpoints and
rollouts set aside too. Of a damaged result only the artifacts go: the stage continues from its own last checkpoint, which has checksums of its
own, and writes them once more; so weights that took weeks are back in the time of one export. Stages are deterministic, so both usually give the
digests there were, and whatever was made from them stays done.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1mega.recipe import artifacts, files
from r1mega.recipe.artifacts import RunFolder
from r1mega.recipe.assess import Verdict


@dataclass(frozen=True)
class Rebuild:
    """What is to be made again."""

    stages: tuple[str, ...] = ()  # these, from the beginning
    damaged: bool = False  # every result whose bytes differ from its manifest


NOTHING = Rebuild()


def command(overrides: Sequence[str], *options: str) -> str:
    """The command line that runs a recipe with these options, to be copied from a message."""
    return shlex.join(["r1mega", "run", *overrides, *options])


def find_damage(verdict: Verdict, folder: RunFolder) -> tuple[str, ...]:
    """What is wrong with the outputs of a done stage, one phrase for each that is damaged. Reads all their bytes."""
    if verdict.state != "done":
        return ()
    assert verdict.manifest
    stage_dir = folder.stage(verdict.node.name, verdict.manifest.fingerprint)
    found = (artifacts.damage(verdict.manifest, stage_dir, output) for output in verdict.manifest.artifacts)
    return tuple(wrong for wrong in found if wrong)


def choose(wanted: Rebuild, verdicts: Mapping[str, Verdict], folder: RunFolder) -> dict[str, str]:
    """Stage -> why it is to be made again."""
    chosen = {}
    for name, verdict in verdicts.items():
        if name in wanted.stages:
            chosen[name] = "as asked, from the beginning"
        elif wanted.damaged and (wrong := find_damage(verdict, folder)):
            chosen[name] = "; ".join(wrong)
    return chosen


def set_aside(stage_dir: Path, *, whole: bool) -> Path | None:
    """Rename a stage's folder, or its artifacts alone, and return where they lie now; None where there is nothing to rename.

    A process that dies in between leaves a stage that is not done: the next run makes it.
    """
    if not stage_dir.is_dir():
        return None
    number = 1
    while (aside := stage_dir.with_name(f"{stage_dir.name}.aside-{number}")).exists():
        number += 1
    if whole:
        stage_dir.rename(aside)
    else:
        aside.mkdir()
        shutil.copy2(stage_dir / "manifest.json", aside)
        (stage_dir / "artifacts").rename(aside / "artifacts")
        files.sync(aside)
        files.sync(stage_dir)
    files.sync(stage_dir.parent)
    return aside


def digests(verdict: Verdict) -> dict[str, str]:
    """output -> digest, as the manifest has them."""
    return {output: record["digest"] for output, record in verdict.manifest.artifacts.items()} if verdict.manifest else {}


def outcome(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How a result that was made again compares with the one before."""
    differing = [output for output, digest in before.items() if now.get(output) != digest]
    if not differing:
        return "made again with the same digests: what was made from it stays as it is"
    changes = ", ".join(f"{output} ({before[output][:12]} -> {now.get(output, 'nothing')[:12]})" for output in differing)
    return f"warning: made again, and came out different: {changes}; what was made from it is stale"
