"""The whole page: header, sections in reading order, style and script in place. Nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from importlib import resources

from r1mega.observe.report import graph, stages
from r1mega.observe.report.collect import Run, Stage
from r1mega.observe.report.compute import compute
from r1mega.observe.report.formats import bar, duration, legend, section, stage_link, table
from r1mega.observe.report.markup import Html, join, tag
from r1mega.observe.report.rollouts import Rollouts
from r1mega.observe.report.scorecard import scorecard
from r1mega.observe.report.transcripts import reflective_words, transcripts

_PHASES = ("generate", "score", "log-probs", "train", "other")


def render(run: Run, rollouts: Rollouts) -> str:
    """The HTML of a run's report."""
    sections = [("graph", "Graph", _graph(run)), ("scorecard", "Scorecard", scorecard(run)), ("growth", "Across stages", stages.across(run)),
                ("words", "Words", reflective_words(rollouts)), ("stages", "Stages", stages.stage_sections(run)), ("drops", "Data", _drops(run)),
                ("time", "Time", _time(run)),
                ("compute", "Compute", compute(run)), ("rollouts", "Rollouts", transcripts(run, rollouts))]
    shown = [(name, label, content) for name, label, content in sections if content]
    links = tag("nav", tag("ul", [tag("li", tag("a", label, href=f"#{name}")) for name, label, _ in shown]), aria_label="Sections")
    toggle = tag("button", "Colours: automatic", type="button", id="theme", hidden=True)
    body = tag("body", tag("a", "Skip to the content", href="#main", class_="skip"), tag("header", _header(run), class_="top"),
               tag("div", links, toggle, class_="bar"), tag("main", _notices(run), [content for *_, content in shown], id="main"),
               tag("div", "", id="tip", role="status", aria_live="polite", hidden=True), tag("script", Html(_asset("report.js"))))
    return f"<!doctype html>\n{tag('html', _head(run), body, lang='en')}\n"


def _head(run: Run) -> Html:
    """No source of anything but this file is allowed, and no script but ours, so that not even a mistake in escaping could reach out."""
    digest = base64.b64encode(hashlib.sha256(_asset("report.js").encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return tag("head", tag("meta", charset="utf-8"), tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
               Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>'), tag("meta", name="color-scheme", content="light dark"),
               tag("link", rel="icon", href="data:,"), tag("title", f"{run.recipe}, seed {run.seed}: run report"), tag("style", Html(_asset("report.css"))))


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _header(run: Run) -> Html:
    manifests = [stage.manifest for stage in run.stages if stage.manifest]
    started = min((one.started for one in manifests if one.started), default=None)
    ended = max((one.ended for one in manifests if one.ended), default=None)
    done = sum(stage.state == "done" for stage in run.stages)
    seconds = sum(stage.seconds or 0 for stage in run.stages)
    facts = [("seed", run.seed), ("stages done", f"{done} of {len(run.stages)}"), ("wall time of the stages", duration(seconds)),
             ("from", _moment(started)), ("to", _moment(ended)), *run.versions.items()]
    listing = tag("ul", [tag("li", tag("code", one)) for one in run.overrides], class_="plain")
    overrides = tag("details", tag("summary", f"Overrides ({len(run.overrides)})"), listing)
    return join(tag("h1", run.recipe), tag("p", run.description, class_="intro") if run.description else None,
                tag("dl", [tag("div", tag("dt", name), tag("dd", "–" if value is None else value)) for name, value in facts], class_="facts"),
                overrides if run.overrides else None)


def _moment(text: str | None) -> str | None:
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z")
    except ValueError:
        return text


def _notices(run: Run) -> Html | None:
    if not run.notices:
        return None
    return tag("section", tag("h2", "Warnings"), tag("ul", [tag("li", notice) for notice in run.notices]), id="warnings", class_="warnings")


def _graph(run: Run) -> Html:
    parents = {stage.name: list(dict.fromkeys(one.source for one in stage.inputs)) for stage in run.stages}
    texts = {stage.name: _node_text(stage) for stage in run.stages}
    drawings = [graph.draw(graph.arrange(parents, style), texts, name) for style, name in ((graph.WIDE, "wide"), (graph.NARROW, "narrow"))]
    used = dict.fromkeys(stage.state for stage in run.stages)
    states = tag("ul", [tag("li", tag("span", f"{graph.SIGNS.get(state, '?')} {state}", class_=f"badge {state}")) for state in used], class_="legend")
    return section("graph", "Stage graph", drawings, states, intro="Every box leads to its stage.")


def _node_text(stage: Stage) -> graph.NodeText:
    detail = " · ".join(part for part in (stage.kind, duration(stage.seconds) if stage.seconds else "") if part)
    headline = stages.headline(stage)
    sources = ", ".join(f"{one.source} ({one.kind or one.name})" for one in stage.inputs)
    title = "; ".join(part for part in (f"{stage.name}: {stage.state}", detail, headline, f"from {sources}" if sources else "", *stage.reasons) if part)
    return graph.NodeText(stage.state, detail, headline, title)


def _drops(run: Run) -> Html | None:
    """Rows that a dataset stage left out, by reason."""
    blocks = []
    for stage in run.stages:
        for artifact, reasons in stage.drops.items():
            ranked = sorted(reasons.items(), key=lambda one: -one[1])
            most, total = max(1, ranked[0][1]), sum(reasons.values())
            rows = [[reason.replace("_", " "), f"{count:,}", f"{100 * count / total:.1f}%" if total else "–", bar([("drop", count / most)])]
                    for reason, count in ranked]
            blocks.append(table(["reason", "rows", "share", ""], rows, caption=f"{stage.name}: {total:,} rows left out of {artifact}"))
    return section("drops", "Rows left out of datasets", tag("div", blocks, class_="pair")) if blocks else None


def _time(run: Run) -> Html | None:
    spent = [(stage, stage.phases) for stage in run.stages if stage.phases]
    if not spent:
        return None
    longest = max(sum(phases.values()) for _, phases in spent)
    used = [name for name in _PHASES if any(name in phases for _, phases in spent)]
    rows = [[stage_link(stage.name), bar([(name, phases.get(name, 0) / longest) for name in used]),
             *(duration(phases.get(name)) for name in used), duration(sum(phases.values()))] for stage, phases in spent]
    return section("time", "Wall time by phase", legend(used), table(["stage", "", *used, "sum"], rows, caption="Time of each stage by phase", numeric=2),
                   intro="Summed over the steps, as the first rank measured them; score is only what generation did not hide, other is start-up, "
                         "evaluation and checkpoints.")

