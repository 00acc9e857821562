"""How good the models are: the run's evaluations beside the paper's stage table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from r1mega.observe.report import paper
from r1mega.observe.report.charts import compact
from r1mega.observe.report.collect import Evaluation, Run, Stage
from r1mega.observe.report.formats import figure, section, stage_link, table
from r1mega.observe.report.markup import Html, join, tag

_COLUMNS = {"cons_at_k": "cons@k", "mean_length": "tokens", "format_rate": "format", "language_consistency": "language",
            "refusal_rate_unsafe": "refuses unsafe", "refusal_rate_safe": "refuses safe"}


def scorecard(run: Run) -> Html | None:
    """The section; None for a run that evaluated nothing."""
    evaluations = [one for stage in run.stages for one in stage.evaluations]
    if not evaluations:
        return None
    whole = [one for one in evaluations if not one.benchmark]
    ours = tag("div", _whole(run, whole) if whole else None, _by_benchmark([one for one in evaluations if one.benchmark]))
    intro = ("pass@1 is the share of correct samples, with its 95% bootstrap interval over problems; cons@k is the share of problems whose most common "
             "answer is correct; language is the share of words in the prompt's language. FLOPs are those of the stage that made the checkpoint, evaluation "
             "aside.")
    return section("scorecard", "Scorecard", tag("div", ours, _paper(run), class_="pair"), intro=intro)


def made_by(run: Run, one: Evaluation) -> Stage | None:
    """The stage that made the checkpoint that was measured."""
    stages = {stage.name: stage for stage in run.stages}
    return stages[one.stage] if one.when == "after" else stages.get(stages[one.stage].starts_from or "")


def _whole(run: Run, evaluations: Sequence[Evaluation]) -> Html:
    """One row for each evaluation of a stage's own task, all its figures."""
    shown = [name for name in _COLUMNS if any(name in one.values for one in evaluations)]
    most = {one.pass_at_k[0] for one in evaluations if one.pass_at_k}
    heads: list[object] = ["stage", "pass@1", "", *([f"pass@{most.pop()}" if len(most) == 1 else "pass@k"] if most else [])]
    several = len(heads) > 3
    made = [stage.model_flops if (stage := made_by(run, one)) else None for one in evaluations]
    rows = [[_who(one), *accuracy(one.values), *([figure(one.pass_at_k and one.pass_at_k[1])] if several else []),
             *(_value(one.values, name) for name in shown), _size(one.values), *([compact(flops) if flops else figure(None)] if any(made) else [])]
            for one, flops in zip(evaluations, made, strict=True)]
    heads += [*(_COLUMNS[name] for name in shown), "problems", *(["FLOPs"] if any(made) else [])]
    return table(heads, rows, caption="This run, on its own held-out problems")


def _by_benchmark(evaluations: Sequence[Evaluation]) -> Html | None:
    """pass@1 of every stage (row) on every benchmark or domain (column)."""
    if not evaluations:
        return None
    columns = list(dict.fromkeys(one.benchmark for one in evaluations))
    found: dict[tuple[str, str], dict[str, Evaluation]] = {}
    for one in evaluations:
        found.setdefault((one.stage, one.when), {})[one.benchmark] = one
    rows = [[_who(replace(next(iter(cells.values())), benchmark="")),
             *(accuracy(cells[name].values)[0] if name in cells else figure(None) for name in columns)] for cells in found.values()]
    return table(["stage", *columns], rows, caption="pass@1 by benchmark or domain")


def _who(one: Evaluation) -> Html:
    words = ", ".join(word for word in (one.benchmark, one.when) if word)
    return join(stage_link(one.stage), tag("small", f" {words}") if words else None)


def _value(values: Mapping[str, Any], name: str) -> str:
    return figure(values.get(name), 1 if name == "mean_length" else 3)


def accuracy(values: Mapping[str, Any]) -> tuple[Html, Html]:
    """The number with its interval, and a small drawing of both on a scale from 0 to 1."""
    point, ends = values.get("pass_at_1"), _ends(values)
    if not isinstance(point, int | float):
        return Html(figure(None)), Html("")
    text = join(figure(point), tag("small", f" {figure(ends[0])} to {figure(ends[1])}") if ends else None)
    low, high = ends or (point, point)
    drawing = tag("span", tag("i", style=f"left:{_percent(low)};width:{_percent(high - low)}"), tag("b", style=f"left:{_percent(point)}"), class_="range",
                  aria_hidden="true")
    return text, drawing


def _ends(values: Mapping[str, Any]) -> tuple[float, float] | None:
    ends, point = values.get("pass_at_1_ci95"), values.get("pass_at_1")
    if isinstance(ends, list | tuple) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends):
        return float(ends[0]), float(ends[1])
    if isinstance(ends, int | float) and isinstance(point, int | float):  # a half-width
        return point - ends, point + ends
    return None


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.1f}%"


def _size(values: Mapping[str, Any]) -> str:
    problems, samples = values.get("problems"), values.get("samples_per_problem")
    return " × ".join(figure(value, 0) for value in (problems, samples) if value is not None) or figure(None)


def _paper(run: Run) -> Html:
    names = {stage.name for stage in run.stages}
    rows = [[join(name, tag("small", f" {unit}")), *(f"{value:.0f}" if unit == "rating" else f"{value:.1f}" for value in values)]
            for name, (unit, values) in paper.RESULTS.items()]
    what = tag("ul", [tag("li", tag("b", model), f": {meaning}", f"; here {node}" if node in names else None)
                      for model, (node, meaning) in paper.MODELS.items()], class_="plain")
    warning = tag("p", "These are the paper's figures for its 671-billion-parameter model on public benchmarks. They show what each stage of the "
                  "recipe did there; their scale cannot be compared with this run's.", class_="note")
    return tag("div", table(["benchmark", *paper.MODELS], rows, caption=f"The paper's model: {paper.SOURCE}"), warning, what)
