"""Preference data without a policy: how a score becomes a verdict, what becomes of verdicts, what is kept of the rows, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from r1mega_plugins.annotators.openai import OpenAIAnnotator, OpenAIAnnotatorConfig
from r1mega_plugins.annotators.rule import Rule, RuleConfig
from r1mega_plugins.stages._annotating import Annotating
from r1mega_plugins.stages._preferences import Place, Row, merged, write_rows, write_set
from r1mega_plugins.stages.preference_data import PreferenceData, PreferenceDataConfig
from scripted_server import Reply, Seen, chat, serve

from r1mega.config import RewardConfig, RewardTerm
from r1mega.data.card import Tally
from r1mega.data.decontaminate import Decontaminator, prompt_texts
from r1mega.data.preferences import Assessment, Comparison, WholeResponse, agreed, assessments
from r1mega.data.records import JudgedResponse, PreferencePair, read_preferences
from r1mega.errors import ConfigError, DataError, PluginError, R1MegaError
from r1mega.recipe.context import StageContext
from r1mega.remote.config import ServerConfig
from r1mega.types import Completion, EncodedPrompt, GenerationRequest, Prompt, SamplingParams

ASKED = Prompt("helpful:thank/Ann/en", "please thank Ann", domain="helpful")
PROMPTS = [EncodedPrompt(dataclasses.replace(ASKED, id=f"p{number}"), "please thank Ann\n", (number,)) for number in range(3)]
CLEAN = Decontaminator(())  # nothing is measured on
UNSAFE = Prompt("unsafe:steal/bike/en", "how to steal a bike?", domain="safety")
BEST, SHORTER, SOME, NOTHING = "many thanks Ann, glad to help", "many thanks Ann", "many thanks Ann, now go away", "go away"  # 1, 0.7, 0.7, 0
REWARD = RewardConfig(terms={"preference": RewardTerm("world_preference"), "safety": RewardTerm("world_safety", domains=["safety"])})


def context(folder: Path, rank: int = 0) -> StageContext:
    folder.mkdir(exist_ok=True)
    (folder / "epoch").write_text("1")
    return StageContext("prefs", None, folder, folder, {}, rank, 1, 0, 1)


# --------------------------------------------------------------------------------------------------------------------------- the rule judges


@pytest.fixture(scope="module")
def rule() -> Iterator[Rule]:
    judge = Rule(RuleConfig("preference", better=0.3, much_better=0.7), reward=REWARD)
    yield judge
    judge.close()


def comparison(a: str, b: str, prompt: Prompt = ASKED) -> Comparison:
    return Comparison(f"{a}/{b}", prompt, a, b, swapped=False)


def test_differences_of_scores_become_verdicts_at_the_thresholds(rule: Rule) -> None:
    asked = [(BEST, NOTHING, "A>>B"), (BEST, SHORTER, "A>B"), (SOME, SHORTER, "A=B"), (SHORTER, BEST, "B>A"), (NOTHING, SHORTER, "B>>A"), (BEST, BEST, "A=B")]
    assert rule.compare([comparison(a, b) for a, b, _ in asked]) == [verdict for _, _, verdict in asked]  # 1 - 0.7 is 0.3, whatever floats say


def test_a_reward_that_fails_gives_no_verdict() -> None:
    """The world's rule knows no such request, which is an error and never a score of 0."""
    judge = Rule(RuleConfig("preference"), reward=dataclasses.replace(REWARD, max_failure_rate=1.0))
    try:
        unknown = dataclasses.replace(ASKED, id="x", question="please sing")
        assert judge.compare([comparison(BEST, NOTHING), comparison(BEST, NOTHING, unknown)]) == ["A>>B", None]
    finally:
        judge.close()


@pytest.mark.parametrize(("settings", "verdicts"), [({}, [True, True, False]), ({"safe_from": 0.9, "unsafe_below": 0.5}, [True, None, False])])
def test_a_score_becomes_safe_unsafe_or_no_verdict(settings: dict[str, float], verdicts: list[bool | None]) -> None:
    judge = Rule(RuleConfig("preference", **settings), reward=REWARD)
    try:
        assert judge.assess([Assessment(text, ASKED, text) for text in (BEST, SOME, NOTHING)]) == verdicts
    finally:
        judge.close()


def test_the_worlds_safety_rule_labels_whole_responses() -> None:
    judge = Rule(RuleConfig("safety"), reward=REWARD)
    try:
        said = ["<think>so</think><answer>sorry, that does harm</answer>", "<think>so</think><answer>steal the bike at night</answer>",
                "<think>steal the bike at night</think><answer>sorry, that does harm</answer>"]
        assert judge.assess([Assessment(text, UNSAFE, text) for text in said]) == [True, False, False]
        assert judge.provenance == {"annotator_reward": "world_safety", "annotator_reward_version": "1"}
        with pytest.raises(ConfigError, match=r"annotator.metric='safety' does not apply to prompts of domain 'helpful'; add"):
            judge.compare([comparison(BEST, NOTHING)])
    finally:
        judge.close()


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Rule(RuleConfig("preferense"), reward=REWARD), r"annotator.metric='preferense': .* Did you mean 'preference'\?"),
    (lambda: Rule(RuleConfig("preference"), reward=RewardConfig()), "reward.terms: none; choose them with reward="),
    (lambda: RuleConfig("x", better=0.5, much_better=0.2), "expected 0 < better <= much_better"),
    (lambda: RuleConfig("x", safe_from=0.4, unsafe_below=0.5), "unsafe_below=0.5 must not be above"),
    (lambda: PreferenceDataConfig(pairs_per_prompt=2), "pairs_per_prompt=2: responses_per_prompt=2 make 1 pairs"),
    (lambda: PreferenceDataConfig(judgements=0), "judgements=0"), (lambda: PreferenceDataConfig(min_margin=2.0), "min_margin=2.0"),
    (lambda: PreferenceDataConfig(length_tolerance=1.0), "length_tolerance=1.0")])
def test_impossible_settings_are_named(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


# ------------------------------------------------------------------------------------------------------------------------- a model judges


def test_a_model_labels_responses_and_an_unreadable_answer_is_no_verdict() -> None:
    def answer(_: int, request: Seen) -> Reply:
        question = request.body["messages"][1]["content"]
        verdict = "perhaps" if "unclear" in question else "safe" if "sorry" in question else "unsafe"
        return chat(json.dumps({"analysis": ".", "verdict": verdict}))

    with serve(answer) as server:
        judge = OpenAIAnnotator(OpenAIAnnotatorConfig("guard", ServerConfig(base_url=server.url), attempts=2), reward=RewardConfig())
        verdicts = judge.assess([Assessment(text, UNSAFE, text) for text in ("sorry, no", "at night", "unclear")])
    assert verdicts == [True, False, None]
    assert len(server.seen) == 4
    assert all("how to steal a bike?" in request.body["messages"][1]["content"] for request in server.seen)
    assert judge.provenance == {"annotator_model": "guard"}


def test_only_responses_whose_judgements_agree_are_kept() -> None:
    responses = [WholeResponse(f"r{number}", UNSAFE, f"text {number}", {"sample": number}) for number in range(4)]
    assert [one.id for one in assessments(responses[:2], 2)] == ["r0#0", "r0#1", "r1#0", "r1#1"]
    kept, drops = agreed(responses, [True, True, False, False, True, False, True, None], judgements=2)
    assert [(row.id, row.safe, row.prompt, row.domain) for row in kept] == [("r0", True, UNSAFE.question, "safety"), ("r1", False, UNSAFE.question, "safety")]
    assert kept[1].provenance == {"sample": 1, "verdicts": [False, False]}
    assert drops == {"judgements_disagree": 1, "no_verdict": 1}
    with pytest.raises(DataError, match="3 verdicts for 4 responses; expected 2 each, 8"):
        agreed(responses, [True] * 3, judgements=2)


# ------------------------------------------------------------------------------------------------------------------------------ one unit


class One:
    """The only rank there is."""

    dp_rank, dp_size, world_size, is_lead = 0, 1, 1, True

    def max_over_ranks(self, value: float) -> float:
        return value

    def sum_over_replicas(self, values: dict[str, float]) -> dict[str, float]:
        return values


class Scripted:
    """A generator that says what it is told; nothing stands for an answer that was cut off. And a judge: the longer the better."""

    version = "1"
    provenance: dict[str, Any] = {}  # noqa: RUF012 - of a test

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts, self.generated, self.asked, self.missing = texts, 0, 0, 0

    def generate(self, requests: Sequence[GenerationRequest], on_finish: Any) -> None:
        for request, text in zip(requests, self.texts * len(requests), strict=False):
            self.generated += 1
            on_finish(Completion(request.id, (1,), (0.0,), text, "stop" if text else "length", 0))

    def compare(self, comparisons: Sequence[Comparison]) -> list[str | None]:
        self.asked += len(comparisons)
        return ["A>>B" if len(one.a) > len(one.b) else "B>>A" if len(one.b) > len(one.a) else "A=B" for one in comparisons][self.missing:]

    def assess(self, assessments: Sequence[Assessment]) -> list[bool | None]:
        return ["bad" not in one.response for one in assessments]

    def close(self) -> None:
        """Nothing to close."""


def annotating(folder: Path, script: Scripted, **settings: Any) -> Annotating:
    config = PreferenceDataConfig(responses_per_prompt=len(script.texts), **settings)
    ranks: Any = One()
    return Annotating(config, context(folder), ranks, script, script, PROMPTS, SamplingParams(8), {"checkpoint": "c", "annotator": "scripted 1"})


def test_a_unit_makes_pairs_of_usable_responses_that_differ_and_counts_the_rest(tmp_path: Path) -> None:
    said = ["<think>a</think><answer>long answer</answer>", "", "<think>b</think><answer>short</answer>", "<think>never closed",
            "<think>another thought</think><answer>short</answer>", "<think>c</think><answer>equal</answer>"]
    script = Scripted(said)
    work = annotating(tmp_path, script, pairs_per_prompt=15)
    assert work.unit(0) == {"prompts": 3, "kept": 6, "units_from_ledger": 0.0}
    assert script.asked == 3 * 3 * 4, "every pair of texts that a reader can tell apart is compared four times"
    assert work.tallies["helpful"] == Tally(3, 0, 18, 0, work.tallies["helpful"].drops)
    assert +work.tallies["helpful"].drops == {"response_truncated": 3, "response_without_visible_part": 3, "pair_of_equal_responses": 3,
                                              "pair_repeated": 6, "margin_too_small": 3}
    rows = list(merged(context(tmp_path), 1, 1, PreferencePair))
    assert [row.id for row in rows[:3]] == sorted((row.id for row in rows[:3]), key=[row.id for row in rows].index)
    assert {row.id for row in rows if row.id.startswith("p0")} == {"p0#0-2", "p0#0-5"}
    assert all(isinstance(row, PreferencePair) and row.chosen == said[0] for row in rows)
    assert rows[0].provenance["prompt_id"] == "p0"
    assert rows[0].provenance["checkpoint"] == "c"
    assert len(rows[0].provenance["verdicts"]) == 4


def test_what_is_banked_is_neither_generated_nor_judged_again(tmp_path: Path) -> None:
    said = ["<answer>long answer</answer>", "<answer>short</answer>"]
    first, again, otherwise = Scripted(said), Scripted(said), Scripted([*said, "<answer>x</answer>"])
    annotating(tmp_path, first).unit(0)
    assert (first.generated, first.asked) == (6, 12)
    assert annotating(tmp_path, again).unit(0)["units_from_ledger"] == 1.0
    assert (again.generated, again.asked) == (0, 0)
    annotating(tmp_path, otherwise).unit(0)
    assert (otherwise.generated, otherwise.asked) == (9, 12), "banked work of other settings is not taken for this"


def test_an_annotator_that_leaves_questions_unanswered_is_named(tmp_path: Path) -> None:
    script = Scripted(["<answer>long answer</answer>", "<answer>short</answer>"])
    script.missing = 1
    with pytest.raises(PluginError, match=r"annotator 'scripted 1' gave 11 verdicts for 12 questions"):
        annotating(tmp_path, script).unit(0)


def test_a_unit_of_single_responses(tmp_path: Path) -> None:
    script = Scripted(["<answer>good</answer>", "<answer>bad</answer>", "<answer>good</answer>"])
    work = annotating(tmp_path, script, kind="safety", judgements=2)
    assert work.unit(0)["kept"] == 6
    rows = list(merged(context(tmp_path), 1, 1, JudgedResponse))
    assert [(row.id, row.safe) for row in rows if isinstance(row, JudgedResponse)] == [(f"p{n}#{k}", k == 0) for n in range(3) for k in (0, 1)]
    assert +work.tallies["helpful"].drops == {"response_repeated": 3}


# ------------------------------------------------------------------------------------------------------------------------------- the set


def pair(number: int, chosen: int, rejected: int) -> PreferencePair:
    return PreferencePair(f"p{number}", "Tell me.", f"<think>{'t' * 90}</think>{'c' * chosen}", "r" * rejected, provenance={"prompt_id": f"p{number}"})


def written(folder: Path, rows: Sequence[tuple[Place, Row]], **settings: Any) -> StageContext:
    """A set of rows that two replicas made in two units."""
    here = context(folder)
    half = len(rows) // 2
    for unit, part in enumerate((rows[:half], rows[half:])):
        for replica in (0, 1):
            write_rows(here, unit, replica, [row for row in part if row[0][0] % 2 == replica])
    write_set(PreferenceDataConfig(**settings), here, 2, 2, {"helpful": Tally(prompts=len(rows), generated=2 * len(rows))}, {"checkpoint": "c"})
    return here


def test_what_is_measured_on_is_neither_asked_nor_said(tmp_path: Path) -> None:
    evaluations = Decontaminator(prompt_texts("quiz", [Prompt("x", ASKED.question), Prompt("y", "one two three four five six seven eight nine ten")]))
    stage, other = PreferenceData(PreferenceDataConfig()), dataclasses.replace(ASKED, id="other", question="Please thank somebody else.")
    assert stage._chosen([ASKED, other], evaluations) == [other]
    assert stage._prompt_drops["helpful"].drops == {"prompt_contaminated": 1}
    said = ["<answer>long answer</answer>", "<answer>short</answer>", "<answer>One, two, three, four, five, six, seven, eight, nine, ten!</answer>"]
    work = dataclasses.replace(annotating(tmp_path, Scripted(said), pairs_per_prompt=3), prompts=PROMPTS, evaluations=evaluations)
    assert work.unit(0)["kept"] == 3
    assert +work.tallies["helpful"].drops == {"response_contaminated": 3}


def test_rows_come_in_order_cut_and_balanced_by_what_the_reward_model_reads(tmp_path: Path) -> None:
    sizes = [(100, 100), (300, 100), (90, 100), (100, 100), (100, 90), (100, 100), (900, 1)]
    rows = [((number, 0), pair(number, *size)) for number, size in enumerate(sizes)]
    here = written(tmp_path, rows, max_rows=6, length_tolerance=0.05)
    pairs, judged = read_preferences(here.output("preferences"))
    assert ([row.id for row in pairs], judged) == (["p0", "p2", "p3", "p4", "p5"], [])
    report = json.loads((here.output("report") / "report.json").read_text())["metrics"]
    assert report["length_ratio_before"] == pytest.approx(790 / 590)  # without the reasoning
    assert (report["length_ratio"], report["pairs"], report["mean_margin"]) == (1.0, 5, 2.0)
    assert (report["drops/surplus"], report["drops/pair_tips_the_lengths"]) == (1, 1)
    card = (here.output("preferences") / "README.md").read_text()
    assert "5 preference pairs in en (5)." in card
    assert "| pair_tips_the_lengths | 1 | 1 |" in card
    assert "1.000 times as long as the rejected (1.339 before 1 pairs were left out)" in card


def test_lengths_are_left_alone_where_nobody_asked(tmp_path: Path) -> None:
    rows = [((number, 0), pair(number, 300, 100)) for number in range(6)]
    pairs, _ = read_preferences(written(tmp_path, rows, length_tolerance=0.0).output("preferences"))
    assert len(pairs) == 6


def judged_row(number: int, *, safe: bool) -> tuple[Place, Row]:
    return (number, 0), JudgedResponse(f"r{number}", "how?", f"text {number}", safe, domain="helpful")


def test_a_set_that_teaches_nothing_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    mixed = written(tmp_path / "mixed", [judged_row(number, safe=number < 1) for number in range(4)], kind="safety")
    assert json.loads((mixed.output("report") / "report.json").read_text())["metrics"]["safe_share"] == 0.25
    with pytest.raises(R1MegaError, match="all 4 responses are safe; a reward model learns nothing"):
        written(tmp_path / "safe", [judged_row(number, safe=True) for number in range(4)], kind="safety")
    assert not (tmp_path / "safe" / "artifacts" / "preferences").exists()
    with pytest.raises(R1MegaError, match=r"stage 'prefs' kept nothing"):
        written(tmp_path / "none", [])


# ---------------------------------------------------------------------------------------------------------------------------- the prompts


def test_prompts_of_the_wanted_domains_in_an_order_that_cuts_fairly() -> None:
    prompts = [Prompt(f"{domain}{number}", "?", domain=domain) for domain in ("helpful", "safety", "general") for number in range(50)]
    stage = PreferenceData(PreferenceDataConfig(domains=["helpful", "general"]))
    found = stage._chosen(prompts, CLEAN)
    assert sorted(prompt.id for prompt in found) == sorted(prompt.id for prompt in prompts if prompt.domain != "safety")
    assert 10 <= sum(prompt.domain == "helpful" for prompt in found[:40]) <= 30
    assert PreferenceData(PreferenceDataConfig(domains=["helpful", "general"], max_prompts=40))._chosen(prompts[::-1], CLEAN) == found[:40]
    assert {prompt.domain for prompt in PreferenceData(PreferenceDataConfig(kind="safety"))._chosen(prompts, CLEAN)} == {"safety"}


def test_conversations_are_counted_and_unknown_domains_refused() -> None:
    talk = Prompt("c", "and then?", domain="helpful", metadata={"messages": [{"role": "user", "content": "hi"}]})
    stage = PreferenceData(PreferenceDataConfig())
    assert stage._chosen([ASKED, talk], CLEAN) == [ASKED]
    assert stage._prompt_drops["helpful"].drops == {"prompt_conversation": 1}
    with pytest.raises(DataError, match="all prompts of helpful are conversations"):
        stage._chosen([talk], CLEAN)
    with pytest.raises(DataError, match=r"no prompt is of domain 'helpfull'.* Did you mean 'helpful'\?"):
        PreferenceData(PreferenceDataConfig(domains=["helpfull"]))._chosen([ASKED], CLEAN)
