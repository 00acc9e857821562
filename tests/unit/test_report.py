"""The report of a run: what it says of a whole run, of a broken one, and of text that would like to be markup."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_run

from r1mega import cli
from r1mega.observe import report
from r1mega.observe.report import charts, graph, rollouts
from r1mega.observe.report.collect import Series, collect, evaluations_of
from r1mega.observe.report.markup import Html, escape, tag
from r1mega.recipe import runner
from r1mega.recipe.artifacts import RunFolder


class Reader(HTMLParser):
    """Checks that elements nest, and keeps elements, ids and text."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_run.make(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return report.write(run).read_text(encoding="utf-8")


def test_the_page_is_whole_and_every_link_leads_somewhere(html: str) -> None:
    page = Reader(html)
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids)), "an id is there twice"
    targets = {href for _, attributes in page.tags if (href := attributes.get("href")) and href != "data:,"}
    assert {target for target in targets if not (target.startswith("#") and target[1:] in ids)} == set()
    assert {"graph", "scorecard", "growth", "words", "stages", "drops", "time", "compute", "rollouts"} <= set(ids)
    assert {f"stage-{node}" for node in report_run.R1} <= set(ids)


def test_nothing_is_loaded_from_anywhere(html: str) -> None:
    page = Reader(html)
    assert [name for name, attributes in page.tags if "src" in attributes or name in ("iframe", "object", "base", "img")] == []
    assert "url(http" not in html
    assert "@import" not in html
    assert len([1 for name, _ in page.tags if name == "script"]) == 1


def test_text_of_a_run_stays_text(html: str) -> None:
    assert '<script>document.title="owned"</script>' not in html
    assert '&lt;script&gt;document.title=&quot;owned&quot;&lt;/script&gt;' in html
    assert "<img" not in html
    assert "rank 1 died &lt;killed&gt;" in html
    text = Reader(html).text
    assert '<script>document.title="owned"</script> is <b>not</b> it & "so"' in text
    assert "7?\ufffd" in text, "a lone surrogate and a NUL must become harmless characters"


def test_the_scorecard_has_our_figures_and_the_papers(html: str) -> None:
    card = html[html.index('id="scorecard"') : html.index('id="growth"')]
    text = Reader(f"<div>{card[card.index('>') + 1 : card.rindex('</section>')]}</div>").text
    assert "zero before0.180 0.160 to 0.200" in text
    assert "zero after0.360 0.340 to 0.380" in text
    for figure in ("77.9", "2029", "DeepSeek-R1 (arXiv 2501.12948 v2), Table 3", "cannot be compared",
                   "R1-Zero: RL from the base model, rules alone; here zero"):
        assert figure in text
    assert "pass@1 by benchmark or domain" in text


def text_of(html: str, section: str) -> str:
    part = html[html.index(f'<section id="{section}"'):] if f'<section id="{section}"' in html else html[html.index(f'id="{section}"'):]
    return Reader(f"<div>{part[part.index('>') + 1: part.index('</section>')]}</div>").text


def test_compute_is_told_by_stage_and_beside_what_it_made_of_a_checkpoint(run: Path, html: str) -> None:
    told = text_of(html, "compute")
    assert "base6T6T–––" in told, "a stage that trains alone"
    assert "zero38.5T9T7T22.5T4T" in told, "the sum of training, inference and generation; evaluation apart"
    same = told[told.index("Trained from the checkpoint of student_base"):]
    assert "distill_student sft39T0.900" in same
    assert "student_rl rl" in same
    assert "score_distill_student" in same, "measured alike: by the stage that measures alone"
    card = text_of(html, "scorecard")
    assert "problemsFLOPs" in card
    assert "zero before0.180 0.160 to 0.200" in card
    row = card[card.index("zero before"): card.index("reasoning_rl before")]
    before, after = row.split("zero after")
    assert before.endswith("6T"), "what it began with is base's work"
    assert after.endswith("38.5T")
    stages = {stage.name: stage for stage in collect(run).stages}
    assert stages["score_zero"].model_flops is None
    assert stages["zero"].starts_from == "base"


def test_a_stage_that_has_not_finished_tells_what_its_steps_told(tmp_path: Path) -> None:
    folder = report_run.make(tmp_path / "run", {name: report_run.R1[name] for name in ("base", "zero")})
    stages = {stage.name: stage for stage in collect(folder).stages}
    assert stages["zero"].state == "failed"
    assert stages["zero"].flops == pytest.approx({"training": 300 * 3e10, "inference": 300 * 1e10, "generation": 300 * 8e10 + 1e10 * 150.5})


def test_rollouts_show_advantages(html: str) -> None:
    assert re.search(r"advantage [+-]\d\.\d{3}", html)
    assert "no gradient" in html


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    folder = report_run.make(tmp_path / "run", {"base": report_run.R1["base"]})
    page = Reader(report.write(folder).read_text(encoding="utf-8"))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {"graph", "stages", "time"} <= ids
    assert not {"scorecard", "words", "drops", "rollouts", "warnings", "growth"} & ids


def test_a_run_in_any_state_can_be_told(tmp_path: Path) -> None:
    """Damaged and missing files leave gaps and notices, never an error."""
    folder = report_run.make(tmp_path / "run", {name: report_run.R1[name] for name in ("base", "zero", "cold_start_data")})
    here = RunFolder(folder).stage("zero")
    (here / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\nnot json\n[]\n{"step": 2, "loss": "inf"}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    (here / "rollouts" / "samples.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\n{"step": 1, "completion": "alone"}\n')
    (RunFolder(folder).stage("base") / "manifest.json").write_text('{"node": "base"}')
    (RunFolder(folder).stage("cold_start_data") / "artifacts" / "samples" / "drops.json").write_text("[1]")
    collected = collect(folder)
    zero = next(stage for stage in collected.stages if stage.name == "zero")
    assert zero.history["loss"] == Series((1.0, 3.0), (2.0, 1.0), not_finite=1)
    assert any("not a manifest of this version" in notice for notice in collected.notices)
    assert any("drops.json: expected an object" in notice for notice in collected.notices)
    assert "alone" in report.write(folder).read_text(encoding="utf-8")


def test_states_and_reasons_are_those_of_status(run: Path) -> None:
    stages = {stage.name: stage for stage in collect(run).stages}
    assert stages["zero"].state == "done"
    assert stages["score_student_rl"].state == "failed"
    assert stages["sft"].inputs[1].kind == "SampleSet"


def test_the_command_writes_the_file_and_says_where(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page.html"
    assert cli.main(["report", str(run), "--output", str(target), "--words", "let me check, NEVER SAID"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    words = target.read_text(encoding="utf-8").partition('id="words"')[2].partition("</section>")[0]
    assert "let me check" in words
    assert "never said" not in words.lower()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"], "no temporary file may stay"


@pytest.mark.parametrize(("content", "output", "words"), [
    (None, None, "no run here"), ("{", None, "not valid JSON"), ("[]", None, "expected an object with 'nodes'"),
    ('{"nodes": {}}', "no/such/folder/report.html", "cannot be written"),
])
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, content: str | None, output: str | None, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "graph.json").write_text(content)
    assert cli.main(["report", str(tmp_path), *(["--output", str(tmp_path / output)] if output else [])]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_report_that_fails_is_a_warning_and_not_the_runs_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = object.__new__(runner._Run)
    work.folder = RunFolder(tmp_path)  # no run lies here
    work.report()
    error = capsys.readouterr().err
    assert error.startswith("warning: no report: ")
    assert error.count("\n") == 1


def test_a_large_run_makes_a_bounded_page_that_says_what_is_missing(tmp_path: Path) -> None:
    folder = report_run.make(tmp_path / "run", {name: report_run.R1[name] for name in ("base", "zero")}, steps=6000)
    rows = [{"step": step, "id": f"{step}@{step}#{k}", "prompt": "p", "completion": "x" * 40_000, "reward": 1.0} for step in range(120) for k in range(4)]
    (RunFolder(folder).stage("zero") / "rollouts" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = report.write(folder).read_text(encoding="utf-8")
    assert len(html) < 4_000_000
    shown = re.search(r"(\d+) of 480 recorded samples", html)
    assert shown
    assert 100 < int(shown[1]) < 480
    assert "[... 34000 characters left out ...]" in html


def test_kept_points_are_true_ones_with_the_peaks() -> None:
    draw = random.Random(0)
    xs = [float(i) for i in range(5000)]
    ys = [math.sin(i / 400) + draw.gauss(0, 0.01) for i in range(5000)]
    ys[1234], ys[4321] = 9.0, -9.0
    kept = charts.keep(xs, ys, 600)
    assert len(kept) == 600
    assert kept == sorted(set(kept))
    assert {0, 1234, 4321, 4999} <= set(kept)
    assert charts.keep(xs[:10], ys[:10], 600) == list(range(10))


def test_smoothing_keeps_a_straight_line_and_its_ends() -> None:
    line = [0.5 * i for i in range(200)]
    assert charts.smoothed(line) == pytest.approx(line, abs=0.3)
    assert charts.smoothed([1.0] * 19) is None


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 2029, [0, 1000, 2000]), (3e-7, 9e-7, [4e-7, 6e-7, 8e-7])])
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high, 4) == pytest.approx(expected)


@pytest.mark.parametrize("lines", [[], [Series((), ())]])
def test_a_chart_without_points_is_nothing(lines: list[Series]) -> None:
    assert charts.line_chart("x", [charts.Line("a", one) for one in lines]) == ""


def test_a_chart_of_one_or_equal_values_is_drawn() -> None:
    for series in (Series((5.0,), (0.0,)), Series((1.0, 2.0), (-3.0, -3.0))):
        drawn = charts.line_chart("x", [charts.Line("a", series)])
        assert "nan" not in drawn
        assert "inf" not in drawn.replace("info", "")


@pytest.mark.parametrize("style", [graph.WIDE, graph.NARROW])
def test_the_graph_is_layered_and_nothing_overlaps(style: graph.Style) -> None:
    parents = {name: list(dict.fromkeys(reference.partition(".")[0] for reference in inputs.values())) for name, (_, inputs, _) in report_run.R1.items()}
    layout = graph.arrange(parents, style)
    for node, above in parents.items():
        assert all(layout.own[one] < layout.own[node] for one in above), f"{node} is not below what it reads"
    for layer in layout.layers:
        assert sum(map(layout.is_box, layer)) <= style.capacity
        for left, right in itertools.pairwise(layer):
            gap = layout.x[right] - layout.x[left] - (layout.size(left) + layout.size(right)) / 2
            assert gap >= style.gap - 0.01, f"{left} and {right} overlap"
        assert all(layout.size(key) / 2 <= layout.x[key] <= layout.width - layout.size(key) / 2 for key in layer)
    assert {(source, target) for source, target in layout.links if target[1] != source[1] + 1} == set(), "an edge jumps over a layer"
    assert graph.arrange({}, style).height < 100


def test_the_graph_of_a_phone_is_as_narrow_as_a_phone() -> None:
    parents = {name: [reference.partition(".")[0] for reference in inputs.values()] for name, (_, inputs, _) in report_run.R1.items()}
    assert graph.arrange(parents, graph.NARROW).width < 400


def test_evaluations_are_found_by_benchmark_domain_and_time() -> None:
    found = evaluations_of("s", {
        "pass_at_1": 0.5, "pass_at_1_before": 0.25, "pass_at_1_ci95_before": [0.2, 0.3], "pass_at_4": 0.7, "pass_at_16": 0.9, "loss": 1.0,
        "by_domain_before": {"math": {"pass_at_1": 0.1}}, "aime/pass_at_1": 0.6, "reward_terms": {"format_rate": 1.0, "language_consistency": 0.5}})
    assert [(one.benchmark, one.when) for one in found] == [("", "before"), ("", "after"), ("math", "before"), ("aime", "")]
    assert found[0].values == {"pass_at_1": 0.25, "pass_at_1_ci95": [0.2, 0.3]}
    assert found[1].pass_at_k == (16, 0.9)


def test_words_are_whole_and_the_longest_counts() -> None:
    pattern = rollouts.word_pattern(["wait", "let me check", "check", "等等"])
    assert pattern.findall("Wait, waiting! Let me check; recheck. 等等等等") == ["Wait", "Let me check", "等等", "等等"]
    assert rollouts.word_pattern([" ", ""]).findall("anything") == []


def test_samples_to_read_are_spread_over_stages_and_steps(run: Path) -> None:
    stages = collect(run).stages
    found = rollouts.read(stages, most=100)
    assert found.recorded > 300
    assert len(found.samples) == 100
    shared = {one.stage for one in found.samples if one.prompt_id == "3+4"}
    assert shared == {name for name, (stage, *_) in report_run.R1.items() if stage in ("rl", "evaluate")}
    steps = [one.step for one in found.samples if one.stage == "student_rl"]
    assert min(steps) == 1
    assert max(steps) == 281
    sample = next(one for one in found.samples if one.stage == "zero" and one.prompt_id == "3+4")
    assert sample.reasoning.endswith("</think>")
    assert sample.response.startswith("<answer>")


def test_markup_escapes_all_but_itself() -> None:
    assert tag("p", "<b>", [Html("<i>x</i>"), None, 3], data_x='"&', hidden=False, open=True) == '<p data-x="&quot;&amp;" open>&lt;b&gt;<i>x</i>3</p>'
    assert escape("a\x00\x1b[31m\u2028") == "a\ufffd\ufffd[31m\u2028"
