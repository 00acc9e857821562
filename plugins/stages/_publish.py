"""Outputs that are whole or absent, for stages that write rows, or bring weights that are whole already."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1mega.recipe import files
from r1mega.recipe.context import StageContext


def publish(context: StageContext, name: str, write: Callable[[Path], Any]) -> None:
    """Write an output beside its place and move it there whole, while this attempt is the newest."""
    folder = context.output(name)
    unfinished = folder.with_name(f".{name}.{context.epoch}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    context.check_epoch()
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
    files.sync(folder.parent)
