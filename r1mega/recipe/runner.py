"""Run a recipe: every stage that is not done, in order, each as its own process group; stop at the first failure, resume on the next run."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from r1mega.compose_show import show
from r1mega.config import ClusterConfig, PluginChoice
from r1mega.errors import ConfigError, R1MegaError, StageFailed, UserError, nearest
from r1mega.plugins import Host
from r1mega.recipe import artifacts, files, fingerprint, launcher, lock, rebuild, required
from r1mega.recipe.artifacts import Manifest, RunFolder
from r1mega.recipe.assess import NodeState, Verdict, assess, headline, judge
from r1mega.recipe.context import SCRATCH
from r1mega.recipe.graph import Graph, build
from r1mega.recipe.nodes import Node, Recipe
from r1mega.recipe.rebuild import NOTHING, Rebuild

_STORAGE = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission denied", errno.EPERM: "permission denied", errno.ENOTDIR: "a file stands where a folder is needed",
            errno.EEXIST: "a file stands where a folder is needed", errno.ENOENT: "no such folder"}


class Interrupted(BaseException):
    """SIGINT or SIGTERM reached the driver."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def run(recipe: Recipe, host: Host, *, only: str | None = None, from_: str | None = None, again: Rebuild = NOTHING,
        dry_run: bool = False, report: bool = True) -> int:
    """Run or resume `recipe` in its output folder; at the end comes the report, unless there is to be none.

    `only` runs that stage alone, `from_` that stage and all that depend on it; both leave done stages as they are and need the earlier ones
    done. `again` says what to make although it is done, also beside them. Returns 0, or 130/143 after SIGINT/SIGTERM. Raises `UserError` (a graph,
    layout, file or folder that cannot be, another run in the folder, a mistake found by a stage), `StageFailed`, and `R1MegaError` for an input
    whose bytes are not those of its manifest.
    """
    graph = build(recipe, host)
    sizes = {name: world_size(node, host) for name, node in recipe.nodes.items()}
    chosen = _chosen(graph, only, from_, again)
    for node in graph.nodes.values():
        fingerprint.check_files(node)
    unset = required.unset_paths(graph, host, chosen)
    wanted = ", ".join(required.to_set(unset, graph))
    if unset and not dry_run:
        raise ConfigError(f"recipe '{recipe.name}' needs paths that have no default; set {wanted} (each as key=value; --dry-run shows all settings)")
    _check_tasks([node for name, node in recipe.nodes.items() if name in chosen and "task.path" not in unset.get(name, ())], host)
    folder = RunFolder(recipe.output_dir.absolute())
    if dry_run:
        verdicts = assess(graph, folder)
        print("\n".join(plan(verdicts, chosen, sizes, rebuild.choose(again, verdicts, folder))))
        print(f"\n{show(recipe, chosen)}", end="")
        if unset:
            print(f"\nto run it, set: {wanted}")
        return 0
    try:
        (folder.root / "stages").mkdir(parents=True, exist_ok=True)
        with lock.hold(folder.lock), _signals():
            work = _Run(recipe, graph, folder, sizes)
            try:
                work.execute(chosen, again)
            except StageFailed:
                if report:
                    work.report()
                raise
            if report:
                work.report()
    except Interrupted as error:
        print(f"r1mega: {error}; the same command resumes", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        if error.filename and not Path(error.filename).absolute().is_relative_to(folder.root):
            raise UserError(f"{error.filename}: {_STORAGE[error.errno]}") from error
        raise UserError(f"output_dir={folder.root}: {_STORAGE[error.errno]} ({error.filename or error}); make room or choose another folder, "
                        "then run again: finished work is kept") from error
    return 0


def world_size(node: Node, host: Host) -> int:
    """How many ranks a node's layout takes; checked against its model where it has one. Raises `ConfigError`."""
    from r1mega.policy import layout

    parallel, model = getattr(node.config, "parallel", None), getattr(node.config, "model", None)
    if parallel is None:
        return 1
    if isinstance(model, PluginChoice) and not model.is_unset:
        architecture = host.registry.get("models", model.name).factory(model.config)
        return layout.check_layout(architecture, parallel, node.config.precision, node.config.cluster)
    count = layout.world_size(parallel)
    if count < 1:
        raise ConfigError(f"stages.{node.name}: parallel.* multiply to {count} ranks; every size must be at least 1")
    return count


def _check_tasks(nodes: Sequence[Node], host: Host) -> None:
    """Build every distinct task once, which reads and checks its data: a malformed line is told before the first stage trains."""
    built = set()
    for node in nodes:
        task = getattr(node.config, "task", None)
        if isinstance(task, PluginChoice) and repr(task) not in built:
            built.add(repr(task))
            plugin = host.registry.get("tasks", task.name)
            arguments = () if plugin.config is None else (task.config,)
            plugin.factory(*arguments, seed=getattr(node.config, "seed", 0))


def plan(verdicts: Mapping[str, Verdict], chosen: set[str], sizes: Mapping[str, int], again: Mapping[str, str]) -> list[str]:
    """One line for each stage: what `run` would do with it, and why. `again`: stage -> why it is made although it is done."""
    width = max(map(len, verdicts))
    lines = []
    for name, verdict in verdicts.items():
        action = "rebuild" if name in again else "left out" if name not in chosen else "skip" if verdict.state == "done" else "run"
        why = again.get(name) or "; ".join(verdict.reasons) or "done"
        lines.append(f"{name:<{width}}  {action:<8}  {verdict.node.stage}, {_ranks(sizes[name])}: {why}")
    return lines


def _ranks(count: int) -> str:
    return f"{count} rank{'s' if count > 1 else ''}"


def _chosen(graph: Graph, only: str | None, from_: str | None, again: Rebuild) -> set[str]:
    for option, name in (("--only", only), ("--from", from_), *(("--rebuild", stage) for stage in again.stages)):
        if name is not None and name not in graph.nodes:
            raise UserError(f"{option} {name}: the recipe has no such stage.{nearest(name, graph.nodes)} Stages: {', '.join(graph.nodes)}")
    chosen = set(graph.nodes) if only is None else {only}
    return (chosen if from_ is None else chosen & graph.descendants(from_)) | set(again.stages)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Interrupted` in the main thread."""
    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Run:
    """One `run` under the folder's lock."""

    def __init__(self, recipe: Recipe, graph: Graph, folder: RunFolder, sizes: Mapping[str, int]) -> None:
        self.recipe, self.graph, self.folder, self.sizes = recipe, graph, folder, sizes
        self.before: dict[str, dict[str, str]] = {}  # stage that is made again -> output -> the digest there was

    def execute(self, chosen: set[str], again: Rebuild) -> None:
        self._describe()
        self.verdicts = assess(self.graph, self.folder)
        self.folder.digests.save()
        chosen = chosen | self._set_aside(again)
        self._summarise()
        for name, node in self.graph.nodes.items():
            verdict = self.verdicts[name] = judge(node, self.folder, self.verdicts)
            if name not in chosen:
                continue
            if verdict.state == "done":
                self._skip(verdict)
                continue
            if verdict.fingerprint is None:  # only with --only and --from: otherwise its inputs have just been made
                raise UserError(f"stage '{name}' cannot run yet: {'; '.join(verdict.reasons)}. "
                                "Run without --only and --from, or name that stage")
            self._attempt(verdict)
            self.verdicts[name] = judge(node, self.folder, self.verdicts)
            if self.before.get(name):
                self._say(f"{name}: {rebuild.outcome(self.before[name], rebuild.digests(self.verdicts[name]))}")
        self.folder.digests.save()
        self._summarise()

    def report(self) -> None:
        """Write `report.html`. The run is what it is without it: whatever goes wrong here is one warning line."""
        from r1mega.observe import report

        try:
            self._say(f"report: {report.write(self.folder.root)}")
        except Exception as error:
            with contextlib.suppress(OSError):
                self._say(f"warning: no report: {error or type(error).__name__}; `r1mega report {self.folder.root}` tries again")

    def _describe(self) -> None:
        """Write down what is wanted: `config.yaml` and `graph.json`."""
        recipe = self.recipe
        config = {"recipe": recipe.name, "seed": recipe.seed, "overrides": list(recipe.overrides),
                  "stages": {name: dict(node.tree) for name, node in recipe.nodes.items()}}
        files.write_text(self.folder.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        files.write_json(self.folder.graph, {"recipe": recipe.name, "description": recipe.description, "seed": recipe.seed, **self.graph.to_json()})
        self._say(f"recipe {recipe.name}, seed {recipe.seed}: {' '.join(recipe.overrides)}")

    def _set_aside(self, again: Rebuild) -> set[str]:
        """Rename what is to be made again; the stages it is of."""
        chosen = rebuild.choose(again, self.verdicts, self.folder)
        for name, why in chosen.items():
            verdict = self.verdicts[name]
            stage_dir = self.folder.stage(name, verdict.fingerprint) if verdict.fingerprint else None
            if stage_dir and (aside := rebuild.set_aside(stage_dir, whole=name in again.stages)):
                self.before[name] = rebuild.digests(verdict)
                self._say(f"{name}: made again: {why}; what was there is now {aside}")
            else:
                self._say(f"{name}: there is nothing to set aside: {'; '.join(verdict.reasons)}")
        if chosen:
            self.verdicts = assess(self.graph, self.folder)
        elif again.damaged:
            self._say("no result is damaged")
        return set(chosen)

    def _skip(self, verdict: Verdict) -> None:
        manifest, node = verdict.manifest, verdict.node
        assert manifest
        assert verdict.fingerprint
        files.point(self.folder.stage(node.name), verdict.fingerprint)
        self._clear(self.folder.stage(node.name, verdict.fingerprint))  # the driver may have died before it came to it
        self._say(f"{node.name}: done before in {manifest.seconds:.1f} s {headline(manifest.metrics)}".rstrip())
        if manifest.code != node.code:
            warning = f"the code of stage '{node.stage}' has changed since this result was made, its version {node.version} has not"
            self._say(f"{node.name}: warning: {warning}; raise `version` if results change")
            if warning not in manifest.warnings:
                manifest.warnings.append(warning)
                manifest.save(self.folder.stage(node.name, verdict.fingerprint))

    def _attempt(self, verdict: Verdict) -> None:
        """One attempt at a stage: prepare its folder, launch, record how it ended."""
        node = self.recipe.nodes[verdict.node.name]
        inputs = self._verified_inputs(verdict)
        stage_dir, manifest = self._prepare(verdict)
        launch = launcher.Launch(node.name, stage_dir, self.sizes[node.name], getattr(node.config, "cluster", ClusterConfig()), manifest.epoch)
        files.write_json(stage_dir / "run.json", {"node": node.name, "stage": node.stage, "inputs": inputs, "epoch": manifest.epoch,
                                                  "run_dir": str(self.folder.root), "options": {}})
        self._say(f"{node.name}: attempt {manifest.epoch} on {_ranks(launch.world_size)} ({'; '.join(verdict.reasons)})")
        self._summarise({node.name: "running"})
        begin = time.monotonic()
        try:
            launcher.run(launch)
            manifest.metrics = self._result(launch)
            manifest.artifacts = artifacts.record(verdict.node, stage_dir)
        except BaseException as error:
            manifest.state, manifest.error = ("interrupted" if isinstance(error, Interrupted) else "failed"), str(error)
            with contextlib.suppress(OSError):  # a full disk must not hide the reason
                self._finish(manifest, stage_dir, time.monotonic() - begin)
                self._summarise({node.name: manifest.state})
                self._say(f"{node.name}: {manifest.state}: {error}", echo=False)
            raise
        manifest.state = "done"
        self._finish(manifest, stage_dir, time.monotonic() - begin)
        self._clear(stage_dir)
        self._say(f"{node.name}: done in {manifest.seconds:.1f} s {headline(manifest.metrics)}".rstrip())
        self._summarise({node.name: "done"})

    def _verified_inputs(self, verdict: Verdict) -> dict[str, str]:
        """The folder of each input, its bytes compared with its manifest."""
        found = {}
        for name, reference in verdict.node.inputs.items():
            source, _, output = reference.partition(".")
            maker = self.verdicts[source]
            assert maker.manifest
            assert maker.fingerprint
            stage_dir = self.folder.stage(source, maker.fingerprint)
            if wrong := artifacts.damage(maker.manifest, stage_dir, output):
                raise R1MegaError(f"stage '{verdict.node.name}' needs {reference}, but {wrong}; to set it aside and make it again: "
                                  f"{rebuild.command(self.recipe.overrides, '--rebuild-damaged')}")
            found[name] = str(artifacts.artifact(stage_dir, output))
        return found

    def _prepare(self, verdict: Verdict) -> tuple[Path, Manifest]:
        """The stage's folder with its settings, a new epoch and a manifest in state `running`."""
        node = verdict.node
        assert verdict.fingerprint
        assert verdict.basis is not None
        stage_dir = self.folder.stage(node.name, verdict.fingerprint)
        stage_dir.mkdir(parents=True, exist_ok=True)
        manifest = Manifest.load(stage_dir) or Manifest(node.name, node.stage, node.owner, verdict.fingerprint, verdict.basis, node.code,
                                                        dict(verdict.inputs), self.sizes[node.name], started=_now())
        manifest.epoch = lock.next_epoch(stage_dir)
        manifest.state, manifest.error, manifest.ended = "running", None, None
        manifest.code, manifest.world_size, manifest.versions = node.code, self.sizes[node.name], artifacts.package_versions()
        (stage_dir / "result.json").unlink(missing_ok=True)
        files.write_text(stage_dir / "config.yaml", yaml.safe_dump(dict(node.tree), sort_keys=False, allow_unicode=True))
        manifest.save(stage_dir)
        files.point(self.folder.stage(node.name), verdict.fingerprint)
        return stage_dir, manifest

    def _finish(self, manifest: Manifest, stage_dir: Path, seconds: float) -> None:
        manifest.ended, manifest.seconds = _now(), manifest.seconds + seconds
        manifest.save(stage_dir)

    def _clear(self, stage_dir: Path) -> None:
        """Remove what a stage kept for the case that it is killed: its outputs are recorded."""
        try:
            if (stage_dir / SCRATCH).is_dir():
                shutil.rmtree(stage_dir / SCRATCH)
        except OSError as error:
            self._say(f"warning: {stage_dir / SCRATCH} cannot be removed ({error}); the run has no more use for it")

    def _result(self, launch: launcher.Launch) -> dict[str, Any]:
        path = launch.stage_dir / "result.json"
        result: dict[str, Any] = files.read_json(path) if path.is_file() else {"epoch": None}
        if result["epoch"] != launch.epoch:
            raise StageFailed(f"stage '{launch.name}': its ranks ended well but rank 0 wrote no result. Log: {launch.log(0)}")
        return dict(result["metrics"])

    def _summarise(self, states: Mapping[str, NodeState] | None = None) -> None:
        """Rewrite `summary.json`; `states` overrides what the last verdicts say."""
        stages = {}
        for name, verdict in self.verdicts.items():
            if states and name in states:
                verdict = judge(verdict.node, self.folder, self.verdicts)
            state = states[name] if states and name in states else verdict.state
            stages[name] = {"state": state, "seconds": verdict.seconds, "metrics": verdict.metrics}
        files.write_json(self.folder.summary, {"recipe": self.recipe.name, "seed": self.recipe.seed, "stages": stages})

    def _say(self, text: str, echo: bool = True) -> None:
        """A line for `run.log` and the terminal."""
        with self.folder.log.open("a", encoding="utf-8") as file:
            file.write(f"{_now()} [{os.getpid()}] {' '.join(text.split())}\n")
        if echo:
            print(text, file=sys.stderr, flush=True)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
