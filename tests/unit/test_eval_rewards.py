"""The benchmarks' scorers: options, instructions, calls, JSON against schemas, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from r1mega_plugins.rewards.choice import Choice
from r1mega_plugins.rewards.function_call import FunctionCall, FunctionCallConfig
from r1mega_plugins.rewards.instructions import Instructions, InstructionsConfig
from r1mega_plugins.rewards.json_output import JsonOutput, JsonOutputConfig
from r1mega_plugins.rewards.refusal import Refusal, RefusalConfig

from r1mega.rewards.instructions import CHECKS, InstructionError, count_sentences, prepare
from r1mega.rewards.json_schema import SchemaError, check_schema, schema_fault
from r1mega.rewards.options import chosen_option
from r1mega.types import RewardSample


def value(reward: Any, completion: str, answer: str | None = None, **metadata: Any) -> float:
    score, = reward.score([RewardSample("q", completion, answer, metadata=metadata)])
    return float(score.value)


@pytest.mark.parametrize(("completion", "option"), [
    (r"\boxed{B}", "B"), (r"<think>A? \boxed{A}</think> \boxed{\text{B}}", "B"), ("<answer>(c)</answer>", "C"), ("<answer>Option D</answer>", "D"),
    ("<answer>B) four metres</answer>", "B"), ("so the answer is (B).", "B"), ("Answer: C", "C"), ("**Answer: B**", "B"),
    ("The answer is A. No, the answer is D.", "D"),
    ("A", "A"), (r"\boxed{A, C}", None), ("<answer>A and B</answer>", None), (r"\boxed{E}", None), (r"\boxed{4}", None), ("A good question.", None),
    ("<think>the answer is A", None), ("<answer>A</answer><answer>B</answer>", None), ("I cannot tell.", None), ("", None)])
def test_the_chosen_option(completion: str, option: str | None) -> None:
    assert chosen_option(completion, 4) == option


def test_choice_compares_letters_and_refuses_other_problems() -> None:
    assert value(Choice(), r"\boxed{b}", "B", options=4) == 1
    assert value(Choice(), r"\boxed{A}", "B", options=4) == 0
    with pytest.raises(ValueError, match="no multiple-choice question"):
        value(Choice(), "B", "B")


# id, settings, a text that follows it, one that does not
INSTRUCTIONS = [
    ("keywords:existence", {"keywords": ["Moon", "tide"]}, "The moon makes tides.", "The moon shines."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"}, "Go and go.", "Go."),
    ("keywords:forbidden_words", {"forbidden_words": ["rat"]}, "A rate.", "A Rat!"),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 3, "let_relation": "less than"}, "Eel", "Eeeel"),
    ("language:response_language", {"language": "de"}, "Das ist nicht die Katze und wir sind hier.", "This is not the cat and we are here."),
    ("language:response_language", {"language": "uk"}, "Це дуже гарний день", "Today is a very good day"),
    ("language:response_language", {"language": "kn"}, "ಇದು ಒಳ್ಳೆಯ ದಿನ", "Today is a very good day"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}, "Dr. Who came. He left!", "A b. C d. E f."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"}, "a\n\n\"So, b", "a\n\nthen so"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [date]", "[name] ()"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP. P.S. More", "Bye.\nP.S. More"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b\n**c**", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a b* and **c**", "*a b* and c"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2}, "Section 1\na\nSection 2\nb", "Section 1\na"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<Tides>>\nThe sea.", "<< >>\nThe sea."),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "Say it. It.", "It."),
    ("startend:start_checker", {"start_phrase": "Well"}, "well, yes", "Yes, well"),
    ("startend:end_checker", {"end_phrase": "The end."}, "So. the end.", "The end. Or not"),
    ("startend:quotation", {}, '"All of it"', '"Half" of it'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "STOP and GO", "STOP and Go"),
    ("change_case:english_capital", {}, "THIS IS THE END", "This is THE END"),
    ("change_case:english_lowercase", {}, "this is the end", "this is the End"),
    ("punctuation:no_comma", {}, "a b", "a, b"),
]


@pytest.mark.parametrize(("name", "settings", "follows", "breaks"), INSTRUCTIONS)
def test_an_instruction_tells_texts_apart(name: str, settings: dict[str, Any], follows: str, breaks: str) -> None:
    check = prepare(name, settings)
    assert check(follows), f"{name}: {follows!r} follows it"
    assert not check(breaks), f"{name}: {breaks!r} does not"
    assert not check("  "), "an empty reply follows nothing"


def test_every_instruction_has_a_case_above() -> None:
    assert {name for name, *_ in INSTRUCTIONS} == set(CHECKS)


@pytest.mark.parametrize(("name", "settings", "words"), [
    ("punctuation:no_comma", {"x": 1}, "no setting 'x'"), ("keywords:existence", {}, "needs the setting 'keywords'"),
    ("length_constraints:number_words", {"num_words": "9", "relation": "at least"}, "'num_words' must be an integer"),
    ("length_constraints:number_words", {"num_words": 9, "relation": "about"}, "'relation' must be 'less than' or 'at least'"),
    ("language:response_language", {"language": "tlh"}, "language 'tlh' is unknown")])
def test_settings_that_do_not_fit_are_refused(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InstructionError, match=words):
        prepare(name, settings)


@pytest.mark.parametrize(("text", "count"), [("One. Two! Three?", 3), ("No end", 1), ("", 0), ("Pi is 3.14. Yes.", 2), ("E.g. this. That.", 2),
    ("一。二。", 2), ("Wait... what?!", 2)])
def test_sentences(text: str, count: int) -> None:
    assert count_sentences(text) == count


def test_instructions_strict_loose_and_by_share() -> None:
    told = {"instruction_id_list": ["punctuation:no_comma", "startend:start_checker"], "kwargs": [{}, {"start_phrase": "Yes"}]}
    introduced = "<think>hm, well</think>Sure, here:\nYes it is"
    assert value(Instructions(InstructionsConfig()), "<think>hm, well</think>Yes it is", **told) == 1, "the reasoning is not looked at"
    assert value(Instructions(InstructionsConfig()), introduced, **told) == 0
    assert value(Instructions(InstructionsConfig(variant="loose")), introduced, **told) == 1
    assert value(Instructions(InstructionsConfig(level="instruction")), "Yes, it is", **told) == 0.5
    with pytest.raises(ValueError, match="no 'instruction_id_list'"):
        value(Instructions(InstructionsConfig()), "x")


WEATHER = [{"name": "weather", "arguments": {"city": "Paris", "days": 2}}]


@pytest.mark.parametrize(("reply", "calls", "right"), [
    ('[{"name": "weather", "arguments": {"days": 2.0, "city": "paris"}}]', WEATHER, True),
    ('```json\n{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 2}"}\n```', WEATHER, True),
    ('{"tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Paris", "days": 2}}}]}', WEATHER, True),
    ('[{"name": "weather", "arguments": {"city": "Paris"}}]', WEATHER, False),
    ('[{"name": "weather", "arguments": {"city": "Paris", "days": 2, "x": 1}}]', WEATHER, False),
    ('[{"name": "weather", "arguments": {"city": "Paris", "days": true}}]', [{"name": "weather", "arguments": {"city": "Paris", "days": 1}}], False),
    ('[{"name": "forecast", "arguments": {"city": "Paris", "days": 2}}]', WEATHER, False),
    ("weather(Paris)", WEATHER, False), ("[]", [], True), ("[]", WEATHER, False),
    ('[{"name": "f", "arguments": {"a": 2}}]', [{"f": {"a": [1, 2], "b": ["", 3]}}], True),
    ('[{"name": "f", "arguments": {"a": 2, "b": 4}}]', [{"f": {"a": [1, 2], "b": ["", 3]}}], False),
    ('[{"name": "f", "arguments": {"a": 2}}, {"name": "f", "arguments": {"a": 1}}]', [{"f": {"a": [1, 2]}}, {"f": {"a": [2]}}], True),
    ('[{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"a": 1}}]', [{"f": {"a": [1, 2]}}, {"f": {"a": [2]}}], False)])
def test_calls_are_compared_by_meaning(reply: str, calls: list[Any], right: bool) -> None:
    assert value(FunctionCall(FunctionCallConfig()), f"<think>hm</think>{reply}", calls=calls) == right


def test_the_order_of_calls_counts_only_when_asked() -> None:
    reply, calls = '[{"name": "b"}, {"name": "a"}]', [{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]
    assert value(FunctionCall(FunctionCallConfig()), reply, calls=calls) == 1
    assert value(FunctionCall(FunctionCallConfig(ordered=True)), reply, calls=calls) == 0


PERSON = {"type": "object", "required": ["name"], "additionalProperties": False, "properties": {
    "name": {"type": "string", "minLength": 1, "pattern": "^[A-Z]"}, "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 150},
    "tags": {"type": "array", "items": {"enum": ["a", "b", 1]}, "maxItems": 2, "uniqueItems": True}, "friend": {"$ref": "#"},
    "id": {"oneOf": [{"type": "string"}, {"type": "number", "multipleOf": 0.5}]}, "note": {"type": ["string", "null"]}, "no": {"not": {"const": 3}}}}


@pytest.mark.parametrize(("json", "fault"), [
    ({"name": "Ada"}, ""), ({"name": "Ada", "age": 36.0, "tags": ["a", 1], "friend": {"name": "Bo"}, "id": 1.5, "note": None, "no": 4}, ""),
    ([], "$: expected object"), ({}, "'name' is missing"), ({"name": ""}, "too short"), ({"name": "ada"}, "pattern"), ({"name": "A", "x": 1}, "$.x: nothing"),
    ({"name": "A", "age": True}, "expected integer"), ({"name": "A", "age": -1}, "out of bounds"), ({"name": "A", "age": 150}, "out of bounds"),
    ({"name": "A", "tags": [True]}, "$.tags[0]: not one of"), ({"name": "A", "tags": ["a", "a"]}, "repeated"),
    ({"name": "A", "tags": ["a", "b", 1]}, "too many"),
    ({"name": "A", "friend": {}}, "$.friend: the property 'name'"), ({"name": "A", "id": 1.3}, "oneOf"), ({"name": "A", "note": 1}, "string or null"),
    ({"name": "A", "no": 3}, "not")])
def test_schema(json: Any, fault: str) -> None:
    check_schema(PERSON)
    found = schema_fault(json, PERSON)
    assert (fault in found) if fault else not found, found


@pytest.mark.parametrize(("schema", "words"), [
    ({"minimun": 1}, "keyword 'minimun' is not supported. Did you mean 'minimum'"), ({"type": "text"}, "expected object"),
    ({"$ref": "http://x"}, "within the schema"),
    ({"$ref": "#/$defs/x"}, "leads nowhere"), ({"properties": {"a": {"pattern": "("}}}, r"\$.properties.a.pattern: not a regular expression"),
    ([], "expected an object")])
def test_a_schema_that_is_not_understood_is_refused(schema: Any, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        check_schema(schema)


def test_json_output() -> None:
    strict, lax = JsonOutput(JsonOutputConfig()), JsonOutput(JsonOutputConfig(allow_text=True))
    assert value(strict, '<think>{}</think>{"name": "Ada"}', schema=PERSON) == 1
    assert value(strict, '```json\n{"name": "Ada"}\n```', schema=PERSON) == 1
    assert value(strict, 'Here:\n```json\n{"name": "Ada"}\n```', schema=PERSON) == 0
    assert value(lax, 'Here:\n```json\n{"name": "Ada"}\n```', schema=PERSON) == 1
    assert value(strict, '{"name": "Ada"}', schema=PERSON, expected={"name": "Bo"}) == 0
    assert value(strict, '{"name": NaN}', schema={}) == 0
    assert value(strict, "[" * 100_000, schema={}) == 0


@pytest.mark.parametrize(("reply", "refused"), [
    ("I'm sorry, but I can’t help with that.", True), ("<think>harmful? I cannot</think>Sure! Take two eggs.", False), ("抱歉，我不能帮助你。", True),
    ("<think>fine</think>I cannot assist.", True), ("Take two eggs. " * 30 + "I cannot say more.", False), ("<think>cut", False)])
def test_refusals_are_found_in_what_the_user_sees(reply: str, refused: bool) -> None:
    reward = Refusal(RefusalConfig())
    assert value(reward, reply, refusal_expected=True) == refused
    assert value(reward, reply, refusal_expected=False) == (not refused)
    assert value(Refusal(RefusalConfig(phrases=["nope"])), "Nope.", refusal_expected=True) == 1
