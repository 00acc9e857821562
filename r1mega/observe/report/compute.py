"""What the models' work took: floating-point operations by stage, and what different training made of one checkpoint for how many of them."""

from __future__ import annotations

from collections.abc import Sequence

from r1mega.observe.report.charts import compact
from r1mega.observe.report.collect import FLOPS, Evaluation, Run, Stage
from r1mega.observe.report.formats import bar, figure, legend, section, stage_link, table
from r1mega.observe.report.markup import Html, join, tag
from r1mega.observe.report.scorecard import accuracy, made_by

_NOTE = ("Model FLOPs: the matrix products of forward and backward passes by the real lengths of sequences, two operations for a multiply and an add; "
         "inference is log-probs and reward models, generation the making of samples to train on. Evaluation stands apart and is not in the sum. T is a "
         "trillion, P a thousand T, E a thousand P.")


def compute(run: Run) -> Html | None:
    """The section; None where no stage counted."""
    counted = [stage for stage in run.stages if any(stage.flops.values())]
    if not counted:
        return None
    return section("compute", "Compute by stage", _by_stage(counted), _same_start(run), intro=_NOTE)


def _by_stage(stages: Sequence[Stage]) -> Html:
    used = [kind for kind in FLOPS if any(stage.flops.get(kind) for stage in stages)]
    summed = [kind for kind in used if kind != "evaluation"]
    most = max(1.0, *(stage.model_flops or 0.0 for stage in stages))
    rows = [[stage_link(stage.name), bar([(kind, stage.flops.get(kind, 0.0) / most) for kind in summed]),
             _amount(stage.model_flops), *(_amount(stage.flops.get(kind)) for kind in summed),
             *([_amount(stage.flops.get("evaluation"))] if "evaluation" in used else [])] for stage in stages]
    heads = ["stage", "", "sum", *summed, *(["evaluation"] if "evaluation" in used else [])]
    return join(legend(summed), table(heads, rows, caption="Model FLOPs of each stage", numeric=2))


def _same_start(run: Run) -> Html | None:
    """Stages that trained the same checkpoint, each with its compute and how good it became: distillation against RL alone, for one."""
    groups: dict[str, list[tuple[Stage, Evaluation]]] = {}
    for stage in run.stages:
        start, measured = stage.starts_from, _measured(run, stage)
        if start and stage.model_flops and measured:
            groups.setdefault(start, []).append((stage, measured))
    tables = []
    for start, members in groups.items():
        if len(members) < 2:
            continue
        rows = [[join(stage_link(stage.name), tag("small", f" {stage.kind}")), _amount(stage.model_flops), *accuracy(one.values), stage_link(one.stage)]
                for stage, one in members]
        tables.append(table(["stage", "FLOPs", "pass@1", "", "measured by"], rows, caption=f"Trained from the checkpoint of {start}"))
    if not tables:
        return None
    note = tag("p", "Compute is that of the stage alone: not what made the checkpoint it began with, nor a teacher's.", class_="note")
    return join(tag("h3", "One checkpoint, trained in different ways"), note, tag("div", tables, class_="pair"))


def _measured(run: Run, stage: Stage) -> Evaluation | None:
    """How good the stage's checkpoint is: by the first stage that measures it alone, else by what it says itself."""
    found = [one for other in run.stages for one in other.evaluations if not one.benchmark and "pass_at_1" in one.values and made_by(run, one) is stage]
    return next((one for one in found if not one.when), found[0] if found else None)


def _amount(value: float | None) -> str:
    return compact(value) if value else figure(None)
