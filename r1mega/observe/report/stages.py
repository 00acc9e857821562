"""What training did: the curves of every stage, and those that run across stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from r1mega.observe.report.charts import MOST_POINTS, Line, compact, line_chart
from r1mega.observe.report.collect import DOMAINS, Run, Series, Stage, is_evaluation, leaves
from r1mega.observe.report.formats import badge, duration, figure, section, table
from r1mega.observe.report.markup import Html, join, tag

FIRST_CHARTS = 6  # in sight; the others are folded away
MOST_CHARTS = 36  # of one stage
MOST_FIGURES = 60
_ALL_POINTS = 100_000  # of all lines of the page: bounds its size


@dataclass(frozen=True)
class Chart:
    """A chart of a stage: the metrics that share it. A name that ends in `/` stands for all that begin so."""

    title: str
    metrics: tuple[str, ...]
    unit: str = ""


CHARTS = (
    Chart("Reward", ("reward",), "mean of a sample"),
    Chart("Reward components", ("reward/",), "mean of a sample"),
    Chart("Accuracy", ("accuracy",), "share correct, training prompts"),
    Chart("Held-out accuracy", ("held_out/pass_at_1", "held_out/cons_at_k"), "share of problems"),
    Chart("Response length", ("length", "mean_length"), "tokens, mean"),
    Chart("Truncated responses", ("truncated",), "share"),
    Chart("Language consistency", ("language_consistency",), "share of words in the prompt's language"),
    Chart("Format", ("format_rate",), "share"),
    Chart("KL to the reference", ("kl",), "nats a token"),
    Chart("Entropy", ("entropy",), "nats a token"),
    Chart("Clip fraction", ("clip_fraction", "clip_fraction_low", "clip_fraction_high"), "share of tokens"),
    Chart("Loss", ("loss",), "per token"),
    Chart("Gradient norm", ("grad_norm",), "before clipping"),
    Chart("Learning rate", ("lr",)),
    Chart("Speed", ("tokens_per_second",), "tokens/s"),
    Chart("Generator against trainer", ("mismatch",), "mean |log-prob difference|"),
    Chart("Compute", ("flops_training", "flops_inference", "flops_generation"), "model FLOPs a step"),
    Chart("Groups that teach nothing", ("groups_zero_variance", "groups_filtered", "groups_too_few_valid"), "groups a step"),
)


def points_each(run: Run) -> int:
    """How many points a line may have, so that a page of many lines stays small."""
    lines = sum(len(stage.history) for stage in run.stages)
    return max(60, min(MOST_POINTS, _ALL_POINTS // max(1, lines)))


def stage_sections(run: Run) -> Html:
    """All stages, each a heading, its state, its curves and its closing figures."""
    most = points_each(run)
    return section("stages", "Stages", [_stage(stage, most) for stage in run.stages],
                   intro="Faint lines are the values as recorded, strong lines their moving mean. Point at a chart, or focus it and use the arrow keys, "
                         "to read values.")


def across(run: Run) -> Html | None:
    """Length and language over the steps of all stages that have them, in one chart each."""
    most = points_each(run)
    charts = [line_chart(title, lines, unit=unit, most=most) for title, unit, lines in (
        ("Response length", "tokens, mean", _lines(run, "length")),
        ("Accuracy", "share correct, training prompts", _lines(run, "accuracy")),
        ("Language consistency", "share of words in the prompt's language", _lines(run, "language_consistency", "reward/language_consistency"))) if lines]
    ends = _length_growth(run)
    if not charts and ends is None:
        return None
    return section("growth", "Across stages", tag("div", charts, class_="charts"), ends)


def _lines(run: Run, *names: str) -> list[Line]:
    found = ((stage, next((stage.history[name] for name in names if name in stage.history), None)) for stage in run.stages)
    return [Line(stage.name, series) for stage, series in found if series is not None]


def _length_growth(run: Run) -> Html | None:
    """How response length changed from the first tenth of a stage's steps to the last."""
    rows = []
    for line in _lines(run, "length"):
        values = line.series.values
        part = max(1, len(values) // 10)
        if not values:
            continue
        first, last = sum(values[:part]) / part, sum(values[-part:]) / part
        rows.append([line.name, figure(first, 1), figure(last, 1), f"{last / first:.2f} ×" if first else "–"])
    return table(["stage", "first tenth of its steps", "last tenth", "growth"], rows, caption="Growth of the mean response length, tokens") if rows else None


def _stage(stage: Stage, most: int) -> Html:
    facts: list[tuple[str, object]] = [("kind", stage.kind), ("time", duration(stage.seconds))]
    if stage.inputs:
        facts.append(("from", [join(", " if at else None, tag("a", one.source, href=f"#stage-{one.source}"), f" ({one.kind or one.name})")
                               for at, one in enumerate(stage.inputs)]))
    if manifest := stage.manifest:
        facts += [("ranks", manifest.world_size), ("attempts", manifest.epoch), ("fingerprint", tag("code", manifest.fingerprint))]
    reasons = tag("p", "; ".join(stage.reasons), class_="note") if stage.reasons else None
    heading = tag("h3", stage.name, " ", badge(stage.state))
    listing = tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts], class_="facts")
    return tag("section", heading, reasons, listing, _figures(stage), _curves(stage, most), id=f"stage-{stage.name}", class_="stage",
               aria_label=f"Stage {stage.name}")


def _figures(stage: Stage) -> Html | None:
    """Closing figures that the scorecard does not show."""
    rest = [(name, value) for name, value in leaves(stage.metrics)
            if isinstance(value, int | float | str) and not is_evaluation(name) and not name.startswith(DOMAINS)][:MOST_FIGURES]
    if not rest:
        return None
    return tag("dl", [tag("div", tag("dt", name), tag("dd", compact(value) if "flops" in name and isinstance(value, float) else figure(value)))
                      for name, value in rest], class_="facts figures")


def _curves(stage: Stage, most: int) -> Html | None:
    """The known charts, then every other metric; all but the first are folded away. Constants are a line of text."""
    varying = {name: series for name, series in stage.history.items() if len(set(series.values)) > 1}
    steady = {name: series for name, series in stage.history.items() if series.values and name not in varying}
    if not stage.history:
        return None
    used: set[str] = {"flops"}  # the sum of the lines of one chart
    charts = []
    for chart in CHARTS:
        lines = list(_matching(chart, stage.history))
        if any(name in varying for name, _ in lines):
            used |= {name for name, _ in lines}
            named = [Line(name.removeprefix("held_out/").removeprefix("reward/"), series) for name, series in lines]
            charts.append(line_chart(chart.title, named, unit=chart.unit, most=most))
    others = [name for name in varying if name not in used]
    room = max(0, MOST_CHARTS - len(charts))
    charts += [line_chart(name, [Line(name, varying[name])], most=most) for name in others[:room]]
    left = f"{len(others) - room} more metrics are in metrics.jsonl: {', '.join(others[room:])}" if len(others) > room else None
    folded = charts[FIRST_CHARTS:]
    more = tag("details", tag("summary", f"More curves ({len(folded)})"), tag("div", folded, class_="charts"), _note(left)) if folded else None
    same = ", ".join(f"{name} {compact(series.values[0])}" for name, series in steady.items() if name not in used)
    return join(tag("div", charts[:FIRST_CHARTS], class_="charts"), more, _note(f"The same at every step: {same}" if same else None))


def _note(text: str | None) -> Html | None:
    return tag("p", text, class_="note") if text else None


def _matching(chart: Chart, series: Mapping[str, Series]) -> Iterator[tuple[str, Series]]:
    for wanted in chart.metrics:
        yield from ((name, one) for name, one in series.items() if name == wanted or (wanted.endswith("/") and name.startswith(wanted)))


def headline(stage: Stage) -> str:
    """The one figure for a box of the graph."""
    metrics: Mapping[str, object] = stage.metrics
    after = metrics.get("pass_at_1")
    if isinstance(after, int | float):
        before = metrics.get("pass_at_1_before")
        return f"pass@1 {f'{before:.2f} → ' if isinstance(before, int | float) else ''}{after:.2f}"
    for name, value in _ranked(metrics):
        return f"{name.replace('_', ' ')} {figure(value)}"
    return ""


def _ranked(metrics: Mapping[str, object]) -> Sequence[tuple[str, float]]:
    numbers = [(name, value) for name, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    return sorted(numbers, key=lambda one: one[0] in ("steps", "problems"))
