"""The command line: one thin function per command. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from r1mega import __version__
from r1mega.errors import R1MegaError, UserError, nearest

TRACEBACK = "R1MEGA_TRACEBACK"  # set to 1 to see where an error came from


def _parser(command: str, function: Callable[[Sequence[str]], int]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"r1mega {command}", description=function.__doc__, allow_abbrev=False)


def run(argv: Sequence[str]) -> int:
    """Run or resume a recipe: recipe=NAME and any Hydra overrides (key=value, group=choice, stages.STAGE.key=value)."""
    parser = _parser("run", run)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe=NAME, seed=N, output_dir=FOLDER, and settings of the stages")
    parser.add_argument("--only", metavar="STAGE", help="run this stage alone")
    parser.add_argument("--from", dest="from_", metavar="STAGE", help="run this stage and all that depends on it")
    parser.add_argument("--rebuild", metavar="STAGE", action="append", default=[],
                        help="make this stage again from the beginning, also if it is done; what was there is set aside (may be repeated)")
    parser.add_argument("--rebuild-damaged", action="store_true",
                        help="read all results; set aside those that differ from their manifest and make them again from their stage's checkpoints")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, with which settings, and run nothing")
    parser.add_argument("--cfg", action="store_true", help="print the resolved settings of every stage with where each came from")
    options = parser.parse_intermixed_args(argv)
    from r1mega import compose, plugins

    host = plugins.load()
    recipe = compose.compose_recipe(options.overrides, host)
    for name in (options.only, options.from_, *options.rebuild):
        if name is not None and name not in recipe.nodes:
            raise UserError(f"recipe '{recipe.name}' has no stage '{name}'.{nearest(name, recipe.nodes)} Stages: {', '.join(recipe.nodes)}")
    if options.cfg:
        from r1mega.compose_show import show

        print(show(recipe), end="")
        return 0
    from r1mega.recipe import runner
    from r1mega.recipe.rebuild import Rebuild

    again = Rebuild(tuple(options.rebuild), options.rebuild_damaged)
    code = runner.run(recipe, host, only=options.only, from_=options.from_, again=again, dry_run=options.dry_run)
    if code == 0 and not options.dry_run:
        from rich.console import Console

        from r1mega.observe import summary

        summary.show(recipe.output_dir, Console())
    return code


def status(argv: Sequence[str]) -> int:
    """Show the stages of a run: done, running, stale (and why), pending."""
    parser = _parser("status", status)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--verify", action="store_true", help="read the results of all done stages and compare them with their manifests; "
                                                              "exit code 1 if one is damaged")
    options = parser.parse_args(argv)
    from r1mega.recipe import status as view

    return view.show(options.run_dir, options.json, verify=options.verify)


def report(argv: Sequence[str]) -> int:
    """Write one self-contained HTML file about a run: graph, scorecard, curves, rollouts to read."""
    parser = _parser("report", report)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write it (default: RUN_DIR/report.html)")
    parser.add_argument("--words", metavar="WORD,...", help="reflective words to count instead of the usual ones")
    options = parser.parse_args(argv)
    from r1mega.observe import report as view

    words = view.WORDS if options.words is None else options.words.split(",")
    print(view.write(options.run_dir, options.output, words))
    return 0


def convert(argv: Sequence[str]) -> int:
    """Convert a checkpoint to a Hugging Face folder (hf) or back (megatron); every bit is compared, with --check the logits too."""
    parser = _parser("convert", convert)
    parser.add_argument("target", choices=("hf", "megatron"), help="what to make")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="hf: a stage's artifacts/checkpoint; megatron: a Hugging Face folder")
    parser.add_argument("folder", type=Path, metavar="TARGET", help="the folder to make")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="settings of the stage that converts, such as "
                        "parallel.tensor_model_parallel_size=8, precision=fp32, stages.model.dtype=bf16, stages.model.shard_gigabytes=2")
    parser.add_argument("--check", action="store_true", help="compare what transformers and r1mega compute with it, on random tokens in fp32")
    options = parser.parse_intermixed_args(argv)
    from r1mega import plugins
    from r1mega.recipe import single

    made = single.convert(plugins.load(), options.target, options.source, options.folder, options.overrides, logits=options.check)
    difference = made["logits_difference"]
    told = "logits not compared" if difference is None else f"logits within {difference:.1e} nats of transformers'"
    bits = f"every bit compared after {made['cast']} tensors were cast" if made.get("cast") else "every bit compared"
    print(f"{options.folder}: {made['tensors']} tensors, {made['parameters']:,} parameters, {bits}, {told}")
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """Measure a checkpoint, ours or a Hugging Face folder: benchmark=NAME task.path=FILE, or task=NAME, and any settings of the stage evaluate."""
    parser = _parser("eval", evaluate)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a stage's artifacts/checkpoint, or a Hugging Face folder")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value",
                        help="benchmark=NAME, task.path=FILE, evaluation.samples=N, output_dir=FOLDER, ...")
    parser.add_argument("--json", action="store_true", help="print the measures as one JSON object on the last line")
    options = parser.parse_intermixed_args(argv)
    from r1mega import plugins
    from r1mega.recipe import single

    folder = single.evaluate(plugins.load(), options.checkpoint, options.overrides)
    if options.json:
        print(json.dumps(json.loads((folder / "summary.json").read_text())["stages"]["score"]["metrics"], ensure_ascii=False))
        return 0
    from rich.console import Console

    from r1mega.observe import summary

    summary.show(folder, Console())
    return 0


def plugins(argv: Sequence[str]) -> int:
    """List every registered plugin: kind, name, owner, version and what it is."""
    parser = _parser("plugins", plugins)
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    options = parser.parse_args(argv)
    from r1mega import plugins as host

    rows = [{"kind": plugin.kind, "name": plugin.name, "owner": plugin.owner, "version": plugin.version, "doc": plugin.doc}
            for plugin in host.load().registry]
    if options.json:
        print(json.dumps(rows, ensure_ascii=False))
        return 0
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("kind", "name", "owner", "version", "what it is", box=box.SIMPLE_HEAD)
    table.columns[1].no_wrap = True  # a name is to be copied
    for row in rows:
        table.add_row(*(Text(text) for text in row.values()))
    Console().print(table)
    return 0


def chat(argv: Sequence[str]) -> int:
    """Talk to a checkpoint of a run or a Hugging Face model; answers are shown as they are made."""
    parser = _parser("chat", chat)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="artifacts/checkpoint of a stage, or the folder of a Hugging Face model")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="template=NAME, template.path=FOLDER, tokenizer.eos_token=TEXT, precision=NAME")
    parser.add_argument("--prompt", metavar="TEXT", help="ask this one question, print the answer alone to standard output, and end")
    parser.add_argument("--max-tokens", type=int, default=4096, metavar="N", help="most tokens of an answer (4096)")
    parser.add_argument("--temperature", type=float, default=0.6, metavar="X", help="0 is greedy (0.6)")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="X", help="share of the probability to draw from (0.95)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same answers every time")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end an answer before this text (may be repeated)")
    options = parser.parse_intermixed_args(argv)
    from r1mega import talk

    return talk.main(options)


def doctor(argv: Sequence[str]) -> int:
    """Check this machine: versions, devices, the features they switch on, and combinations known to be bad."""
    parser = _parser("doctor", doctor)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    from r1mega import doctor as checks

    return checks.main(options.json)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": run, "status": status, "report": report, "convert": convert, "eval": evaluate, "chat": chat, "plugins": plugins, "doctor": doctor}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {(function.__doc__ or '').strip().splitlines()[0]}" for name, function in COMMANDS.items()]
    return "\n".join(["usage: r1mega COMMAND ...   (r1mega COMMAND --help for one command)", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 for a failure, 2 for a mistake of the user, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"r1mega {__version__}")
        return 0
    try:
        command = COMMANDS.get(arguments[0])
        if command is None:
            raise UserError(f"there is no command '{arguments[0]}'.{nearest(arguments[0], COMMANDS)} Commands: {', '.join(COMMANDS)}")
        return command(arguments[1:])
    except R1MegaError as error:
        if os.environ.get(TRACEBACK) == "1":
            raise
        print(f"r1mega: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("r1mega: interrupted", file=sys.stderr)
        return 130
