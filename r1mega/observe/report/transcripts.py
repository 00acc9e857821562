"""Rollouts to read: one block for each prompt, a column for each stage that answered it, every sample with its rewards and advantage."""

from __future__ import annotations

from collections.abc import Sequence

from r1mega.observe.report.charts import Line, line_chart
from r1mega.observe.report.collect import Run
from r1mega.observe.report.formats import section, table
from r1mega.observe.report.markup import Html, join, tag
from r1mega.observe.report.rollouts import Rollouts, Sample


def reflective_words(rollouts: Rollouts) -> Html | None:
    """How often each word was said, by stage and over the steps; None where none was."""
    said = {name: counts for name, counts in rollouts.words.items() if counts.totals}
    if not said:
        return None
    words = sorted({word for counts in said.values() for word in counts.totals}, key=lambda word: -sum(counts.totals[word] for counts in said.values()))
    rows = [[word, *(f"{100 * counts.totals[word] / counts.completions:.1f}" for counts in rollouts.words.values())] for word in words]
    rows.append([tag("b", "all"), *(f"{100 * counts.totals.total() / counts.completions:.1f}" for counts in rollouts.words.values())])
    heads = ["word", *(join(name, tag("small", f" {counts.completions:,} responses")) for name, counts in rollouts.words.items())]
    chart = line_chart("Reflective words", [Line(name, counts.series) for name, counts in said.items()], unit="a response")
    return section("words", "Reflective words", tag("div", chart, table(heads, rows, caption="Times said in 100 responses"), class_="pair"),
                   intro="Counted in the responses that stages wrote down, which are the best and the worst of their groups and not all of them.")


def transcripts(run: Run, rollouts: Rollouts) -> Html | None:
    """The section; None for a run without samples."""
    samples = rollouts.samples
    if not samples:
        return None
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt_id, []).append(sample)
    order = [stage.name for stage in run.stages]
    ranked = sorted(groups.values(), key=lambda group: (-len({one.stage for one in group}), -len({(one.stage, one.step) for one in group})))
    left = rollouts.recorded - len(samples)
    intro = f"{len(samples):,} of {rollouts.recorded:,} recorded samples" if left else f"All {len(samples):,} recorded samples"
    intro += f" of {len(groups):,} prompts; those that several stages answered come first" if len(groups) > 1 else ""
    intro += ". The rest is in stages/*/current/rollouts." if left else "."
    blocks = [_prompt(group, order, opened=at < 2) for at, group in enumerate(ranked)]
    return section("rollouts", "Rollouts", _filters(samples, order), tag("div", blocks, id="prompts"),
                   tag("button", "Show more prompts", type="button", id="more", hidden=True), intro=intro)


def _filters(samples: Sequence[Sample], order: Sequence[str]) -> Html:
    """A form that the page's script works; hidden without it."""
    stages = [name for name in order if any(sample.stage == name for sample in samples)]
    steps = [sample.step for sample in samples]
    rewards = [sample.reward for sample in samples if sample.reward is not None] or [0.0]
    choice = tag("select", tag("option", "all", value=""), [tag("option", name, value=name) for name in stages], name="stage")
    fields = [tag("label", "Stage", choice),
              *(tag("label", label, tag("input", type="number", name=name, step="any", placeholder=f"{hint:.4g}"))
                for label, name, hint in (("Step from", "step_from", min(steps)), ("Step to", "step_to", max(steps)),
                                          ("Reward from", "reward_from", min(rewards)), ("Reward to", "reward_to", max(rewards)))),
              tag("label", "Text", tag("input", type="search", name="text", placeholder="in prompt or response")),
              tag("label", tag("input", type="checkbox", name="shared"), "Only prompts answered by several stages", class_="check"),
              tag("button", "Clear", type="reset"), tag("output", "", id="found", aria_live="polite")]
    return tag("form", fields, id="filters", hidden=True, aria_label="Filter rollouts")


def _prompt(group: Sequence[Sample], order: Sequence[str], opened: bool) -> Html:
    first, stages = group[0], [name for name in order if any(one.stage == name for one in group)]
    line = " ".join(first.prompt.split())
    short = line if len(line) <= 160 else f"{line[:159]}…"
    told = f"{len(group)} sample{'s' if len(group) > 1 else ''} of {', '.join(stages) if len(stages) < 5 else f'{len(stages)} stages'}"
    whole = tag("pre", first.prompt.strip(), class_="text") if short != line or "\n" in first.prompt.strip() else None
    answer = tag("p", "Reference answer: ", tag("code", first.answer), class_="answer") if first.answer is not None else None
    columns = [tag("div", tag("h4", name), [_sample(one) for one in sorted(group, key=lambda one: one.step) if one.stage == name], class_="column")
               for name in stages]
    return tag("details", tag("summary", tag("span", short, class_="question"), tag("small", told)), whole, answer, tag("div", columns, class_="columns"),
               class_="prompt", data_stages=len(stages), open=opened)


def _sample(sample: Sample) -> Html:
    reward = "failed" if sample.reward is None else f"{sample.reward:.4g}"
    chips = [tag("span", f"reward {reward}", class_=f"chip {_tone(sample)}"),
             *(tag("span", f"{name} {value:.4g}", class_="chip") for name, value in sample.parts.items())]
    if sample.has_advantage:
        chips.append(tag("span", "no gradient" if sample.advantage is None else f"advantage {sample.advantage:+.3f}", class_="chip"))
    about = [f"step {sample.step:,}", "held-out" if sample.held_out else None, None if sample.length is None else f"{sample.length:,} tokens",
             sample.finish_reason if sample.finish_reason not in ("", "stop") else None]
    reasoning = tag("pre", sample.reasoning, class_="text reasoning") if sample.reasoning.strip() else None
    response = tag("pre", sample.response, class_="text") if sample.response.strip() else None
    empty = tag("p", "(empty)", class_="note") if reasoning is None and response is None else None
    return tag("article", tag("p", tag("span", " · ".join(part for part in about if part), class_="about"), chips, class_="chips"), reasoning, response, empty,
               class_="sample", data_stage=sample.stage, data_step=sample.step, data_reward=sample.reward)


def _tone(sample: Sample) -> str:
    """Whether the verifier was content: by its accuracy term where there is one."""
    value = sample.parts.get("accuracy", sample.reward)
    return "bad" if value is None or value <= 0 else "good"
