"""The parts of stage `sample` that need no policy: its settings, who decides, and what a rewriter may do."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from r1mega_plugins.stages._harvest import Harvest, merged, write_shard
from r1mega_plugins.stages._sampler import check_deciders, decider, shareable, terms_of
from r1mega_plugins.stages.sample import SampleConfig, check_prompts, fair_share

from r1mega.config import PluginChoice, RewardConfig, RewardTerm
from r1mega.data.decontaminate import Decontaminator, EvaluationText
from r1mega.data.filters import FilterConfig
from r1mega.data.records import SampleRecord
from r1mega.errors import ConfigError, PluginError, R1MegaError
from r1mega.recipe.context import StageContext
from r1mega.types import Prompt

TERMS = {"accuracy": RewardTerm("accuracy", domains=["math", "logic"]), "judge": RewardTerm("format"), "format": RewardTerm("format")}
MATH, WRITING = Prompt("m", "3+5=", "8", domain="math"), Prompt("w", "Write a poem.", domain="general")

ABOUT: dict[str, dict[str, Any]] = {f"p{number}": {} for number in range(1, 4)}


def config(**settings: Any) -> SampleConfig:
    return SampleConfig(reward=RewardConfig(terms=TERMS), **settings)


def context(folder: Path) -> StageContext:
    (folder / "epoch").write_text("1")
    return StageContext("data", None, folder, folder, {}, 0, 1, 0, 1)


def row(number: int, response: str = "8", answer: str = "8") -> SampleRecord:
    return SampleRecord(f"s{number}", "3+5=", "3+5=8", response, answer, provenance={"tokens": 5, "prompt_id": f"p{number}", "rewriter": None})


@pytest.mark.parametrize(("settings", "words"), [
    ({"metric": "acuracy"}, r"metric='acuracy': there is no such reward term. Did you mean 'accuracy'\?"), ({"judge": "jugde"}, "judge='jugde'"),
    ({"judge_domains": ["general"]}, r"needs judge=<a term"), ({"max_rounds": 0}, "max_rounds=0"), ({"wanted_per_prompt": 0}, "wanted_per_prompt=0")])
def test_impossible_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**settings)


def test_the_judge_decides_where_no_rule_can() -> None:
    rules, judged = config(), config(judge="judge", judge_domains=["logic"])
    assert decider(rules, MATH) == decider(judged, MATH) == "accuracy"
    assert decider(judged, WRITING) == "judge"
    assert decider(judged, dataclasses.replace(MATH, domain="logic")) == "judge"
    assert list(terms_of(judged, MATH)) == ["accuracy", "format"], "a judge that decides nothing is not asked"
    assert list(terms_of(judged, WRITING)) == ["judge", "format"]


def test_a_domain_without_a_deciding_reward_is_refused() -> None:
    check_deciders(config(judge="judge"), [MATH, WRITING])
    with pytest.raises(ConfigError, match=r"prompts of domain 'general' without a reference answer are decided by reward\.terms\.accuracy"):
        check_deciders(config(), [MATH, WRITING])


def test_every_kind_of_prompt_of_a_domain_needs_a_deciding_reward() -> None:
    """Whatever their order: problems without a reference answer go to the judge, which may be confined to other domains."""
    terms = {**TERMS, "judge": RewardTerm("format", domains=["general"])}
    settings = SampleConfig(reward=RewardConfig(terms=terms), judge="judge")
    unanswered = Prompt("n", "Prove it.", None, domain="math")
    check_deciders(settings, [MATH, WRITING])
    for prompts in ([MATH, unanswered], [unanswered, MATH]):
        with pytest.raises(ConfigError, match=r"domain 'math' without a reference answer are decided by reward\.terms\.judge"):
            check_deciders(settings, prompts)


def test_languages_nobody_can_measure_are_refused_at_the_start() -> None:
    klingon = dataclasses.replace(MATH, id="k", language="tlh")
    with pytest.raises(ConfigError, match=r"filters\.min_language_share cannot .* 'tlh' \(1 prompts, the first is 'k'\)"):
        check_prompts(config(), [MATH, klingon])
    off = FilterConfig(min_language_share=0)
    check_prompts(config(filters=off), [MATH, klingon])
    terms = {**TERMS, "language": RewardTerm("language_consistency", domains=["logic"])}
    measured = SampleConfig(reward=RewardConfig(terms=terms), filters=off)
    check_prompts(measured, [MATH, klingon])  # the term does not apply to them
    with pytest.raises(ConfigError, match=r"reward\.terms\.language cannot"):
        check_prompts(measured, [MATH, dataclasses.replace(klingon, domain="logic")])


def test_a_cut_takes_prompts_of_all_domains_in_their_order() -> None:
    prompts = [Prompt(f"{domain}-{number}", "?", domain=domain) for domain in ("math", "code", "logic") for number in range(100)]
    chosen = fair_share(prompts, 60, seed=1)
    assert len(chosen) == 60
    assert [prompt for prompt in prompts if prompt in chosen] == chosen
    assert all(8 <= count <= 32 for count in Counter(prompt.domain for prompt in chosen).values()), "a file grouped by domain is cut fairly"
    assert fair_share(prompts[::-1], 60, seed=1) == chosen[::-1], "the order of the file does not matter"
    assert all(prompt in chosen for prompt in fair_share(prompts, 30, seed=1))
    assert fair_share(prompts, 0, seed=1) is fair_share(prompts, 300, seed=1) is prompts


def test_a_row_keeps_labels_and_the_conversation_but_no_hidden_tests() -> None:
    messages = [{"role": "user", "content": "long " * 100}]
    kept = {"messages": messages, "family": "sum", "kind": "greeting", "level": 3, "refusal_expected": True}
    hidden = {"private_test_cases": "[]", "public_test_cases": "x" * 500, "entry": {"answer": 8}, "calls": [1], "schema": {}, "solution": "x" * 200,
              "none": None}
    assert shareable({**kept, **hidden}) == kept


def test_shards_merge_in_the_order_of_prompts_rounds_and_samples(tmp_path: Path) -> None:
    here = context(tmp_path)
    write_shard(here, 0, [((0, 0, 1), row(1)), ((2, 1, 0), row(4)), ((10, 0, 0), row(5))])
    write_shard(here, 1, [((1, 0, 0), row(2)), ((1, 2, 3), row(3)), ((11, 0, 0), row(6))])
    assert merged(here, 2) == [row(number) for number in range(1, 7)]


class Shout:
    """A rewriter that says everything louder, and counts how often it is asked."""

    version: ClassVar[str] = "1"
    asked = 0

    def rewrite(self, samples: Sequence[SampleRecord]) -> list[SampleRecord | None]:
        self.asked += 1
        return [dataclasses.replace(sample, response=sample.response + "!") for sample in samples]


class Cheat(Shout):
    """Changes the reference too."""

    def rewrite(self, samples: Sequence[SampleRecord]) -> list[SampleRecord | None]:
        return [dataclasses.replace(sample, answer="9") for sample in samples]


def test_what_a_rewriter_made_is_banked_for_the_same_rows_alone(tmp_path: Path) -> None:
    harvest, shout = Harvest(config(), context(tmp_path), [], {}, ABOUT), Shout()
    first = harvest._rewritten(shout, "shout", 0, [row(1), row(2)])
    assert [found and found.response for found in first] == ["8!", "8!"]
    assert harvest._rewritten(shout, "shout", 0, [row(1), row(2)]) == first
    assert shout.asked == 1
    harvest._rewritten(shout, "shout", 0, [row(1), row(3)])
    assert shout.asked == 2


def test_a_rewriter_may_not_change_the_reference(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="rewriter 'cheat' returned 1 rows for 1, or changed an id, a prompt or a reference answer"):
        Harvest(config(), context(tmp_path), [], {}, ABOUT)._rewritten(Cheat(), "cheat", 0, [row(1)])


def test_rewritten_rows_are_scored_again_and_losses_counted(tmp_path: Path) -> None:
    """The third row's text states 9: whatever a rewriter did, a wrong row never reaches the set."""
    settings = dataclasses.replace(config(), rewriter=PluginChoice("rules", _rules()))
    harvest = Harvest(settings, context(tmp_path), [row(1), row(2, "5 or 8"), row(3, "9")], {}, ABOUT)
    harvest.rewrite()
    assert [(found.id, found.response, found.provenance["rewriter"]) for found in harvest.rows] == [("s1", "The answer is 8.", "rules 1")]
    assert dict(harvest.tallies["math"].drops) == {"not_rewritten": 1, "rewritten_incorrect": 1}


def test_rewritten_text_is_compared_with_the_evaluation_sets(tmp_path: Path) -> None:
    """A rewriter that is a language model may say by heart what a benchmark asks."""
    settings = dataclasses.replace(config(), rewriter=PluginChoice("rules", _rules()))
    evaluations = Decontaminator([EvaluationText("quiz/1", "the answer is 8", "")], ngram=4)  # what the rewriter puts around the bare answer
    harvest = Harvest(settings, context(tmp_path), [row(1)], {}, ABOUT, evaluations)
    harvest.rewrite()
    assert not harvest.rows
    assert dict(harvest.tallies["math"].drops) == {"rewritten_contaminated": 1}
    assert harvest.contaminated == {"quiz/1": 1}


def test_rewritten_rows_are_scored_with_their_prompts_whole_metadata(tmp_path: Path) -> None:
    """The reward `choice` reads `options`, which no row holds."""
    settings = SampleConfig(reward=RewardConfig(terms={"choice": RewardTerm("choice", domains=["stem"])}), metric="choice",
                            rewriter=PluginChoice("rules", _rules()))
    rows = [dataclasses.replace(row(number, r"\boxed{B}", "B" if number == 1 else "A"), domain="stem") for number in (1, 2)]
    harvest = Harvest(settings, context(tmp_path), rows, {}, {"p1": {"options": 4}, "p2": {"options": 2}})
    harvest.rewrite()
    assert [(found.id, found.metadata) for found in harvest.rows] == [("s1", {})]


def test_rows_that_say_the_same_to_the_same_question_are_one(tmp_path: Path) -> None:
    harvest = Harvest(config(), context(tmp_path), [row(1), row(2), dataclasses.replace(row(3), prompt="5+3=")], {}, ABOUT)
    harvest.drop_repeats()
    assert [found.id for found in harvest.rows] == ["s1", "s3"]
    assert harvest.tallies["math"].drops["duplicate"] == 1


def test_an_empty_set_is_an_error_that_says_what_was_dropped(tmp_path: Path) -> None:
    harvest = Harvest(config(), context(tmp_path), [row(1), row(1)], {}, ABOUT)
    harvest.drop_repeats()
    harvest.rows = []
    with pytest.raises(R1MegaError, match=r"kept no sample; dropped: \{'duplicate': 1\}"):
        harvest.write({}, "abc")


def _rules() -> Any:
    from r1mega_plugins.rewriters.rules import RulesConfig

    return RulesConfig()
