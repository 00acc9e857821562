"""`r1mega report`: one HTML file about a run that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from r1mega.errors import UserError
from r1mega.observe.report.collect import collect
from r1mega.observe.report.page import render
from r1mega.observe.report.rollouts import WORDS, read
from r1mega.recipe.files import write_text

__all__ = ["WORDS", "write"]


def write(run_dir: Path, output: Path | None = None, words: Sequence[str] = WORDS) -> Path:
    """Write the report of the run in `run_dir` to `output` (default `RUN_DIR/report.html`), whole or not at all; where it lies.

    `words` are counted as reflective ones. Raises `UserError` when no run lies in `run_dir`, or the file cannot be written.
    """
    run = collect(run_dir)
    target = output or run_dir / "report.html"
    html = render(run, read(run.stages, words))
    try:
        write_text(target, html)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}; choose another place with --output") from error
    return target
