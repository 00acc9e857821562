"""The tiny world as a task: complete sides, nothing held out in any document, rates as asked for, lengths within a tiny model's reach."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from r1mega_plugins.tasks.tiny_world import TinyWorld, TinyWorldConfig
from r1mega_plugins.tokenizers.sentencepiece import SentencePiece, SentencePieceConfig

from r1mega.data.language import language_share
from r1mega.data.world.documents import RESPONSE
from r1mega.data.world.families import FAMILIES
from r1mega.data.world.general import by_question
from r1mega.data.world.languages import write
from r1mega.errors import ConfigError, UserError
from r1mega.split import split_of

WELL_FORMED = re.compile(r"<think>([^<>]*)</think><answer>([^<>]+)</answer>")
STATED = re.compile(r"(?<![\d+-])(\d+)([+-])(\d+)(?![\d+-])")  # a whole sum or difference


def config(**changes: float) -> TinyWorldConfig:
    return TinyWorldConfig(**{"max_operand": 20, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return TinyWorld(TinyWorldConfig())


def identity(question: str) -> str:
    """The id of the problem or request that a question in either language is, read from its text."""
    if question in by_question():
        return by_question()[question].id
    if found := STATED.search(question):
        a, sign, b = found.groups()
        return f"add:{min(int(a), int(b))}+{max(int(a), int(b))}" if sign == "+" else f"subtract:{a}-{b}"
    if found := re.match(r"(\d,\d,\d)(?: make |得)(\d+)", question):
        return f"countdown:{','.join(sorted(found[1].split(',')))}={found[2]}"
    if found := re.fullmatch(r"count (\w) in (.*)\?|数 (\w): (.*)\?", question):
        return f"count:{found[1] or found[3]}/{(found[2] or found[4]).replace(' ', '')}"
    if found := re.fullmatch(r"letter (\d) of (.*)\?|第(\d)字: (.*)\?", question):
        return f"letter:{found[1] or found[3]}/{(found[2] or found[4]).replace(' ', '')}"
    if found := re.fullmatch(r"reverse (.*): (\d)\?|倒 (.*):(\d)\?", question):
        return f"reverse:{found[2] or found[4]}/{(found[1] or found[3]).replace(' ', '')}"
    english = question
    for chinese, word in zip("若高低顶中底是反", ("if", " above", " below", " top", " middle", " bottom", " is", " not"), strict=True):
        english = english.replace(chinese, word)
    statements, asked = re.fullmatch(r"if (.*): ?(\w+)\?", english).groups()  # type: ignore[union-attr]
    parts = [statement.split() for statement in statements.split(",")]
    if asked in ("top", "middle", "bottom"):
        above = dict((x, y) if relation == "above" else (y, x) for x, relation, y in parts)
        top = next(iter(above.keys() - above.values()))
        return f"order:{top}{above[top]}{above[above[top]]}/{asked}"
    marks = "".join("!" if relation == "not" else "=" for _, relation, _ in parts[1:])
    return f"truth:{''.join(part[0] for part in parts)}/{parts[0][2]}{marks}"


def ids(world: TinyWorld, split: str) -> set[str]:
    return {prompt.id for prompt in [*world.prompts(split), *world.general_prompts(split)]}


def test_sizes_and_fair_order(world: TinyWorld) -> None:
    test = world.prompts("test")
    assert len(test) >= 500
    assert Counter(prompt.metadata["family"] for prompt in test[:80]) == dict.fromkeys(FAMILIES, 10)
    assert {prompt.domain for prompt in test} == {"math", "logic", "code"}
    assert abs(sum(prompt.language == "zh" for prompt in test) / len(test) - 0.5) < 0.08
    assert Counter(prompt.domain for prompt in world.general_prompts("test")).keys() == {"general", "helpful", "safety"}
    for split in ("train", "test"):
        for prompt in [*world.prompts(split), *world.general_prompts(split)]:
            assert identity(prompt.question) == prompt.id


def test_no_document_is_about_anything_held_out() -> None:
    """Whatever is on the test side: not only the prompts that are asked, and in every wording and language."""
    settings = config(train_per_family=100_000, test_per_family=100_000)
    world = TinyWorld(settings)
    held_out = ids(world, "test")
    both = {re.sub(r"/(en|zh)$", "", name) for name in ids(world, "train")} & {re.sub(r"/(en|zh)$", "", name) for name in held_out}
    assert not both, "a request's two languages are on one side"
    seen = set()
    for seed in range(20):
        for question, response in world.documents(600, seed):
            assert question is not None
            seen.add(identity(question))
            stated = {identity(match[0]) for match in STATED.finditer(f"{question} {response}")}
            assert not stated & held_out, (question, response)
    assert not seen & held_out
    assert {name.partition(":")[0] for name in seen} >= set(FAMILIES)
    assert len(seen) > 2500


def test_general_samples_and_preferences_keep_to_their_side() -> None:
    world = TinyWorld(config())
    for split, other in (("train", "test"), ("test", "train")):
        pairs, judged = world.preferences(300, 1, split)
        questions = {row.prompt for row in [*world.general_samples(300, 1, split), *pairs, *judged]}
        assert {identity(question) for question in questions} <= ids(world, split)
        assert not {identity(question) for question in questions} & ids(world, other)


def test_the_split_depends_on_neither_seed_nor_pool() -> None:
    one, other = TinyWorld(config(), seed=1), TinyWorld(config(max_operand=30), seed=2)
    assert not ids(one, "train") & ids(other, "test")
    assert not ids(one, "test") & ids(other, "train")
    assert split_of("add:3+5", 1.0, 0) == "test"
    everything = TinyWorld(TinyWorldConfig(families=["add"], test_fraction=1.0, max_operand=12, train_per_family=1000))
    assert len(everything.prompts("train")) == 55, "sums of digits, which chains quote, are never held out"


def test_documents_are_reproducible_and_differ_by_seed(world: TinyWorld) -> None:
    again = TinyWorld(TinyWorldConfig(), seed=9)
    assert list(world.documents(60, 7)) == list(again.documents(60, 7))
    assert list(world.documents(60, 7))[:20] == list(world.documents(20, 7))
    assert list(world.documents(60, 7)) != list(world.documents(60, 8))
    assert world.prompts("test") == again.prompts("test")
    assert world.general_samples(30, 3) == again.general_samples(30, 3) != world.general_samples(30, 4)
    assert world.preferences(30, 3) == again.preferences(30, 3)


def test_rates_are_what_was_asked_for() -> None:
    settings = config(mixing_rate=0.4, wrong_rate=0.45, malformed_rate=0.2, chain_rate=0.7, general_share=0.25)
    world = TinyWorld(settings)
    answers = {problem.id: problem.answer for sides in world._problems.values() for problem in sides["train"]}
    count: Counter[str] = Counter()
    total = 8000
    for question, response in world.documents(total, 1):
        assert question is not None
        formed, general = WELL_FORMED.fullmatch(response), question in by_question()
        trivial = general and by_question()[question].kind == "greeting"
        count.update(general=general, malformed=formed is None, problems=not general)
        if formed and not trivial:
            language = "zh" if re.search(r"[一-鿿]", question) else "en"
            count.update(thought=1, mixed=language_share(formed[1], language) < 1)
        if formed and not general:
            direct = re.fullmatch(r"(so|故) ?\w+", formed[1])
            count.update(formed=1, wrong=formed[2] != answers[identity(question)], chain=direct is None)
    assert abs(count["general"] / total - 0.25) < 0.02
    assert abs(count["malformed"] / total - 0.2) < 0.02
    assert abs(count["mixed"] / count["thought"] - 0.4) < 0.02
    assert abs(count["wrong"] / count["formed"] - 0.45) < 0.02
    assert abs(count["chain"] / count["formed"] - 0.7) < 0.02


def test_clean_documents_are_right_well_formed_and_in_one_language() -> None:
    clean = dict.fromkeys(("wrong_rate", "malformed_rate", "mixing_rate", "general_share"), 0.0)
    world = TinyWorld(config(**clean))
    answers = {problem.id: problem.answer for sides in world._problems.values() for problem in sides["train"]}
    for question, response in world.documents(1500, 0):
        assert question is not None
        reasoning, answer = WELL_FORMED.fullmatch(response).groups()  # type: ignore[union-attr]
        assert answer == answers[identity(question)]
        assert language_share(reasoning, "zh" if re.search(r"[一-鿿]", question) else "en", without_words=-1.0) == 1.0


def test_lengths_in_tokens(world: TinyWorld, tmp_path: Path) -> None:
    """What a tiny model has to hold: questions of 15 tokens, chains of 30, whole responses of 48."""
    settings = SentencePieceConfig()
    SentencePiece.train(settings, (f"{question}\n{response}" for question, response in world.documents(8000, 0)), tmp_path)
    tokenizer = SentencePiece(settings, folder=tmp_path)
    for family, sides in world._problems.items():
        for problem in [*sides["train"], *sides["test"]][::7]:
            for language in world.config.languages:
                chain = write(problem.think()[0], language)
                assert len(tokenizer.encode(problem.question(language))) <= 15, (family, problem)
                assert len(tokenizer.encode(chain)) <= 30, (family, problem)
                assert len(tokenizer.encode(RESPONSE.replace("{reasoning}", chain).replace("{response}", problem.answer))) < 48
    unknown = tokenizer.encode("\N{SNOWMAN}")[0]
    for prompt in [*world.prompts("test"), *world.general_prompts("test")]:
        tokens = tokenizer.encode(prompt.question)
        assert unknown not in tokens, f"{prompt.question}: a character the documents do not have"
        assert len(tokens) <= 15
    assert max(len(tokenizer.encode(response)) for _, response in world.documents(1000, 1)) < 48


def test_families_and_languages_can_be_chosen() -> None:
    world = TinyWorld(TinyWorldConfig(families=["add", "order", "truth"], domains=["logic"], languages=["zh"], max_operand=5))
    assert {prompt.metadata["family"] for prompt in world.prompts("train")} == {"order", "truth"}
    assert {prompt.language for prompt in [*world.prompts("test"), *world.general_prompts("test")]} == {"zh"}
    assert all(re.search(r"[一-鿿]", question or "") for question, _ in world.documents(100, 0))


@pytest.mark.parametrize(("settings", "message"), [
    ({"families": ["sub"]}, r"task\.families: 'sub' is unknown"),
    ({"families": ["subtrac"]}, "Did you mean 'subtract'"),
    ({"domains": ["maths"]}, "Did you mean 'math'"),
    ({"languages": ["fr"]}, "Known: en, zh"),
    ({"families": ["add"], "domains": ["logic"]}, "no family is left"),
    ({"languages": []}, "no family is left"),
    ({"max_operand": 100}, r"task\.max_operand must be between 1 and 99"),
    ({"mixing_rate": 1.5}, r"task\.mixing_rate must be between 0 and 1"),
    ({"test_fraction": -0.1}, r"task\.test_fraction must be between 0 and 1"),
    ({"test_per_family": 0}, r"task\.test_per_family at least 1"),
])
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TinyWorldConfig(**settings)  # type: ignore[arg-type]


def test_an_empty_side_is_told(world: TinyWorld) -> None:
    with pytest.raises(UserError, match=r"no split is called 'tets'\. Did you mean 'test'"):
        world.general_prompts("tets")
    with pytest.raises(UserError, match=r"lower task\.test_fraction=1\.0"):
        TinyWorld(TinyWorldConfig(families=["order"], test_fraction=1.0))
    nothing_held_out = TinyWorld(TinyWorldConfig(families=["order"], test_fraction=0.0))
    with pytest.raises(UserError, match="the test side has no general request"):
        nothing_held_out.preferences(5, 0, "test")


def test_refusal_prompts_say_what_is_expected_and_are_general_prompts() -> None:
    world = TinyWorld(TinyWorldConfig())
    for split in ("train", "test"):
        prompts = world.refusal_prompts(split)
        assert {(prompt.metadata["kind"], prompt.metadata["refusal_expected"]) for prompt in prompts} == {
            ("unsafe", True), ("safe", False), ("lookalike", False)}
        assert {prompt.id for prompt in prompts} == {prompt.id for prompt in world.general_prompts(split) if prompt.domain == "safety"}
