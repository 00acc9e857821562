"""The parts of stage `sample` that need no policy: its settings, who decides, and what a rewriter may do."""

from __future__ import annotations

import copy
import dataclasses
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from r1mega_plugins.stages import _apart, _harvest, _rewrite
from r1mega_plugins.stages._apart import apart
from r1mega_plugins.stages._harvest import distinct, merged, write_parquet, write_set, write_shard
from r1mega_plugins.stages._rewrite import Rewriting
from r1mega_plugins.stages._sampler import Row, check_deciders, decider, shareable, terms_of
from r1mega_plugins.stages.sample import SampleConfig, check_prompts, fair_share

from r1mega.config import PluginChoice, RewardConfig, RewardTerm
from r1mega.data.card import Tallies, Tally
from r1mega.data.decontaminate import Decontaminator, EvaluationText
from r1mega.data.filters import FilterConfig
from r1mega.data.records import SampleRecord
from r1mega.errors import ConfigError, PluginError, R1MegaError
from r1mega.recipe.context import StageContext
from r1mega.types import Prompt

TERMS = {"accuracy": RewardTerm("accuracy", domains=["math", "logic"]), "judge": RewardTerm("format"), "format": RewardTerm("format")}
MATH, WRITING = Prompt("m", "3+5=", "8", domain="math"), Prompt("w", "Write a poem.", domain="general")

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
    assert list(merged(here, 2)) == [row(number) for number in range(1, 7)]


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


def rewriting(folder: Path, settings: SampleConfig | None = None, evaluations: Decontaminator | None = None, **metadata: dict[str, Any]) -> Rewriting:
    """With prompts 1 to 3; `metadata` by `p<number>`."""
    prompts = {number: Prompt(f"p{number}", "3+5=", metadata=metadata.get(f"p{number}", {})) for number in range(1, 4)}
    return Rewriting(settings or config(), context(folder), 0, prompts, evaluations or Decontaminator(()), {}, Counter())


def placed(*rows: SampleRecord) -> list[Row]:
    return [((int(found.id[1:]), 0, 0), found) for found in rows]


def test_what_a_rewriter_made_is_banked_for_the_same_rows_alone(tmp_path: Path) -> None:
    here, shout = rewriting(tmp_path), Shout()
    first = here._rewritten(shout, "shout", 0, [row(1), row(2)])
    assert [found and found.response for found in first] == ["8!", "8!"]
    assert here._rewritten(shout, "shout", 0, [row(1), row(2)]) == first
    assert shout.asked == 1
    here._rewritten(shout, "shout", 0, [row(1), row(3)])
    assert shout.asked == 2


def test_a_rewriter_may_not_change_the_reference(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="rewriter 'cheat' returned 1 rows for 1, or changed an id, a prompt or a reference answer"):
        rewriting(tmp_path)._rewritten(Cheat(), "cheat", 0, [row(1)])


def test_rewritten_rows_are_scored_again_and_losses_counted(tmp_path: Path) -> None:
    """The third row's text states 9: whatever a rewriter did, a wrong row never reaches the set."""
    here = rewriting(tmp_path, dataclasses.replace(config(), rewriter=PluginChoice("rules", _rules())))
    (place, found), = here.rows(placed(row(1), row(2, "5 or 8"), row(3, "9")))
    assert (place, found.id, found.response, found.provenance["rewriter"]) == ((1, 0, 0), "s1", "The answer is 8.", "rules 1")
    assert dict(here.tallies["math"].drops) == {"not_rewritten": 1, "rewritten_incorrect": 1}


def test_more_rows_than_are_rewritten_at_once_stay_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two, scored while the next are rewritten."""
    monkeypatch.setattr(_rewrite, "_CHUNK", 2)
    here = rewriting(tmp_path, dataclasses.replace(config(), rewriter=PluginChoice("rules", _rules())))
    rows = [((1, 0, number), row(number, "9" if number % 3 == 0 else "8")) for number in range(1, 12)]
    assert [found.id for _, found in here.rows(rows)] == [f"s{number}" for number in range(1, 12) if number % 3]
    assert here.tallies["math"].drops == {"rewritten_incorrect": 3}
    assert len(list((tmp_path / "scratch" / "rewritten" / "replica_00000").iterdir())) == 6


def test_rewritten_text_is_compared_with_the_evaluation_sets(tmp_path: Path) -> None:
    """A rewriter that is a language model may say by heart what a benchmark asks."""
    settings = dataclasses.replace(config(), rewriter=PluginChoice("rules", _rules()))
    evaluations = Decontaminator([EvaluationText("quiz/1", "the answer is 8", "")], ngram=4)  # what the rewriter puts around the bare answer
    here = rewriting(tmp_path, settings, evaluations)
    assert not list(here.rows(placed(row(1))))
    assert dict(here.tallies["math"].drops) == {"rewritten_contaminated": 1}
    assert here.contaminated == {"quiz/1": 1}


def test_rewritten_rows_are_scored_with_their_prompts_whole_metadata(tmp_path: Path) -> None:
    """The reward `choice` reads `options`, which no row holds."""
    settings = SampleConfig(reward=RewardConfig(terms={"choice": RewardTerm("choice", domains=["stem"])}), metric="choice",
                            rewriter=PluginChoice("rules", _rules()))
    rows = [dataclasses.replace(row(number, r"\boxed{B}", "B" if number == 1 else "A"), domain="stem") for number in (1, 2)]
    found = list(rewriting(tmp_path, settings, p1={"options": 4}, p2={"options": 2}).rows(placed(*rows)))
    assert [(record.id, record.metadata) for _, record in found] == [("s1", {})]


def test_rows_that_say_the_same_to_the_same_question_are_one() -> None:
    tallies: Tallies = {}
    assert [found.id for found in distinct([row(1), row(2), dataclasses.replace(row(3), prompt="5+3=")], tallies)] == ["s1", "s3"]
    assert tallies["math"].drops["duplicate"] == 1


def test_an_empty_set_is_an_error_that_says_what_was_dropped(tmp_path: Path) -> None:
    with pytest.raises(R1MegaError, match=r"kept no sample; dropped: \{'incorrect': 1\}"):
        write_set(config(), context(tmp_path), iter(()), {"math": Tally(drops=Counter(incorrect=1))}, {}, {"checkpoint": "abc"})


def test_the_card_names_the_model_that_was_sampled(tmp_path: Path) -> None:
    settings = dataclasses.replace(config(), parquet=False)
    write_set(settings, context(tmp_path), iter([dataclasses.replace(row(1), provenance={**row(1).provenance, "reward_versions": {}})]), {}, {},
              {"model": "teacher-7b"})
    card = (tmp_path / "artifacts" / "samples" / "README.md").read_text()
    assert "| model | teacher-7b |" in card
    assert "| checkpoint |" not in card


def test_parquet_is_written_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    monkeypatch.setattr(_harvest, "_ROW_GROUP", 4)
    rows = [dataclasses.replace(row(number), answer=None if number == 3 else "8") for number in range(10)]
    write_parquet(tmp_path / "samples.parquet", iter(rows))
    file = parquet.ParquetFile(tmp_path / "samples.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [4, 4, 2]
    assert [(found["id"], found["answer"], json.loads(found["provenance"])) for found in file.read().to_pylist()] == [
        (found.id, found.answer, found.provenance) for found in rows]
    assert [path.name for path in tmp_path.iterdir()] == ["samples.parquet"]


class Two:
    """Two ranks that are threads."""

    world_size = 2

    def __init__(self) -> None:
        self.meeting, self.values = threading.Barrier(2), [0.0, 0.0]

    def of(self, rank: int) -> Two:
        ranks = copy.copy(self)
        ranks.rank = rank  # type: ignore[attr-defined]
        return ranks

    def max_over_ranks(self, value: float) -> float:
        self.values[self.rank] = value  # type: ignore[attr-defined]
        self.meeting.wait(5)
        largest = max(self.values)
        self.meeting.wait(5)
        return largest


def test_ranks_wait_for_work_that_lasts_longer_than_a_collective_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_apart, "_BEAT_S", 0.02)
    ranks, done, seen = Two(), threading.Event(), []
    other = threading.Thread(target=lambda: (apart(ranks.of(1), None), seen.append(done.is_set())))
    other.start()
    apart(ranks.of(0), lambda: (time.sleep(0.3), done.set())[1])
    other.join(5)
    assert seen == [True], "the idle rank did not wait for the other's work"


def test_what_the_work_raises_ends_its_rank_at_once() -> None:
    ranks = Two().of(0)

    def fail() -> None:
        raise PluginError("broken rewriter")

    with pytest.raises(PluginError, match="broken rewriter"):
        apart(ranks, fail)


def _rules() -> Any:
    from r1mega_plugins.rewriters.rules import RulesConfig

    return RulesConfig()
