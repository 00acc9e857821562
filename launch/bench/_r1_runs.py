"""One run of a recipe as a user starts it, measured; and what a finished run of `recipe=r1_tiny` left on disk, read and checked again."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from r1mega import plugins
from r1mega.config import RewardTerm
from r1mega.data.chat import render_response
from r1mega.data.records import read_preferences, read_prompts, read_samples
from r1mega.rewards.build import build_reward, checked_scores
from r1mega.types import Prompt, RewardSample

EVERY = 0.5  # seconds between two looks at the memory
SCORES = ("score_base", "score_zero", "score_dev1", "score_dev2", "score_dev3", "score_r1", "score_distill", "score_student_rl")
PREFERENCES = ("preference_dev3", "preference_r1")


@dataclass(frozen=True)
class Cost:
    """What a run took; None: nobody measured it."""

    seconds: float
    peak_gib: float | None = None
    load: float | None = None  # of the machine when the run began: processes that wanted a core


@dataclass(frozen=True)
class Evaluation:
    """A stage `evaluate`: every held-out problem's share of correct samples."""

    rates: Mapping[str, float | None]  # problem -> share; None where no sample could be judged
    samples: int  # per problem
    temperature: float
    failures: int  # samples whose reward failed
    language: float | None  # mean over the samples of the share of words in the prompt's language


@dataclass(frozen=True)
class Verified:
    """The rejection-sampled set, judged again."""

    rows: int
    correct: int
    first_wrong: str = ""


@dataclass(frozen=True)
class Result:
    """A finished run of one seed."""

    seed: int
    cost: Cost
    evaluations: Mapping[str, Evaluation]  # by stage
    held_out: frozenset[str]  # ids of the task's test side
    trained_requests: int  # held-out requests that stand in the general data or the preferences of the training side, too
    verified: Verified
    flops: Mapping[str, Mapping[str, float]]  # stage -> those of its metrics that count operations


def run(recipe: str, seed: int, folder: Path, overrides: Sequence[str]) -> Cost:
    """Run or continue the recipe in `folder`; `r1mega run` itself decides what is still to do.

    The seconds of a run that was continued are those of its stages. The peak of all attempts is kept beside the folder, in FOLDER.cost.json; nobody
    knows it for a folder that was begun without that file.
    """
    path = folder.with_name(f"{folder.name}.cost.json")
    known = json.loads(path.read_text()) if path.is_file() else {"peak_gib": None if folder.exists() else 0.0, "load": os.getloadavg()[0]}
    began, peak = time.perf_counter(), 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "r1mega", "run", f"recipe={recipe}", f"seed={seed}", f"output_dir={folder}", *overrides],
                               stdout=sys.stderr)
    try:
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(EVERY)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        if known["peak_gib"] is not None:
            known["peak_gib"] = max(known["peak_gib"], peak / 2**30)
            path.write_text(json.dumps(known))
    if process.returncode:
        raise SystemExit(f"seed {seed}: the run ended with exit code {process.returncode}; its folder is {folder}")
    return Cost(max(time.perf_counter() - began, stage_seconds(folder)), known["peak_gib"], known["load"])


def cost_of(folder: Path) -> Cost:
    """The cost of a finished run that is not run again: its stages' seconds, and the peak if `run` has measured it."""
    path = folder.with_name(f"{folder.name}.cost.json")
    return Cost(stage_seconds(folder), **(json.loads(path.read_text()) if path.is_file() else {}))


def memory(pid: int) -> int:
    """Bytes resident in a process and all that descend from it; pages that several share count once for each."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # one that has just ended
            total += process.memory_info().rss
    return total


def finished(folder: Path) -> bool:
    """Whether every stage of the run in `folder` is done."""
    stages = _summary(folder)["stages"]
    return bool(stages) and all(stage["state"] == "done" for stage in stages.values())


def stage_seconds(folder: Path) -> float:
    """Seconds the stages of a run took, all attempts together: the run's time less the moments between stages."""
    return float(sum(stage["seconds"] or 0.0 for stage in _summary(folder)["stages"].values()))


def read(folder: Path, cost: Cost | None = None) -> Result:
    """What the run in `folder` found, from its files; without `cost`, that too."""
    if not finished(folder):
        raise SystemExit(f"{folder}: not a finished run; `r1mega status {folder}` shows what is missing, `r1mega run` with the same output_dir continues it")
    summary = _summary(folder)
    stages = summary["stages"]
    if absent := sorted({"sft_data", "world", "world_held_out", *SCORES, *PREFERENCES} - set(stages)):
        raise SystemExit(f"{folder}: a run of recipe '{summary['recipe']}' without the stages {', '.join(absent)}; expected one of r1_tiny")
    evaluations = {name: _evaluation(folder / "stages" / name / "current") for name in (*SCORES, *PREFERENCES)}
    flops = {name: {key: float(value) for key, value in stage["metrics"].items() if "flops" in key and isinstance(value, int | float)}
             for name, stage in stages.items()}
    sides = _sides(_settings(folder / "stages" / "sft_data" / "current"))
    verified = verify(folder / "stages" / "sft_data" / "current", sides["train"])
    return Result(summary["seed"], cost or cost_of(folder), evaluations, frozenset(sides["test"]), _trained_on(folder), verified, flops)


def verify(stage: Path, problems: Mapping[str, Prompt]) -> Verified:
    """Judge every row of the samples that a stage `sample` made, without anything the stage wrote about them.

    The reference is what the task says today about the problem the row names, and the verdict has to be unanimous: the answer is that reference to the
    letter (of a number: to its value, 05 is 5), and the accuracy reward finds it in the whole response as the model would say it. A row about a problem
    that is not of the training side, or that quotes another question or reference than the task, is wrong.
    """
    config = _settings(stage)
    term = config["reward"]["terms"]["accuracy"]
    reward = build_reward("accuracy", RewardTerm(name=term["name"], settings=term["settings"]))
    rows = read_samples(stage / "artifacts" / "samples")
    known = [problems.get(str(row.provenance["prompt_id"])) for row in rows]
    completions = [RewardSample(row.prompt, render_response(config["template"]["response"], row.reasoning, row.response),
                                answer=problem.answer if problem else row.answer) for row, problem in zip(rows, known, strict=True)]
    wrong = [row.id for row, problem, score in zip(rows, known, checked_scores(reward, completions), strict=True)
             if problem is None or (row.prompt, row.answer) != (problem.question, problem.answer) or not _same(row.response, problem.answer)
             or score.value != 1.0]
    return Verified(len(rows), len(rows) - len(wrong), wrong[0] if wrong else "")


def _same(answer: str, reference: str | None) -> bool:
    """Whether two answers are the same text, or the same whole number."""
    return reference is not None and (answer == reference or (answer.isdecimal() and reference.isdecimal() and int(answer) == int(reference)))


def _trained_on(folder: Path) -> int:
    """How many of the held-out requests some stage has learned from."""
    training, held_out = (folder / "stages" / name / "current" / "artifacts" for name in ("world", "world_held_out"))
    pairs, judged = read_preferences(training / "preferences")
    seen = {sample.prompt for sample in read_samples(training / "samples")} | {prompt.question for prompt in read_prompts(training / "prompts")}
    seen |= {pair.prompt for pair in pairs} | {verdict.prompt for verdict in judged}
    return sum(prompt.question in seen for prompt in read_prompts(held_out / "prompts"))


def _sides(config: Mapping[str, Any]) -> dict[str, dict[str, Prompt]]:
    """The problems of a stage's task by side and id, made anew."""
    settings = dict(config["task"])
    plugin = plugins.load().registry.get("tasks", settings.pop("name"))
    task = plugin.factory(plugin.config(**settings), seed=config["seed"]) if plugin.config else plugin.factory(seed=config["seed"])
    return {side: {prompt.id: prompt for prompt in task.prompts(side)} for side in ("train", "test")}


def _evaluation(stage: Path) -> Evaluation:
    report = json.loads((stage / "artifacts" / "report" / "report.json").read_text(encoding="utf-8"))
    return Evaluation({problem["id"]: problem["pass_rate"] for problem in report["problems_detail"]}, report["samples_per_problem"],
                      _settings(stage)["evaluation"]["temperature"], report["reward_failures"], report.get("language_consistency"))


def _settings(stage: Path) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((stage / "config.yaml").read_text(encoding="utf-8"))
    return settings


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"stages": {}}
    return summary
