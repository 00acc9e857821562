"""The accuracy reward: where the answer stands, what equals what, and where we differ from math-verify on purpose."""

from __future__ import annotations

import time

import math_verify
import pytest
from r1mega_plugins.rewards.accuracy import Accuracy, AccuracyConfig

from r1mega.rewards.answers import extract_answer
from r1mega.rewards.numbers import parse_number
from r1mega.types import RewardSample

# answer | reference: math-verify, given the same two texts, must agree with us
AGREED = r"""
42|42
42|43
-7|-7
-7|7
007|7
1,234|1234
1,234,567|1234567
12,34|1234
3.0|3
0.5|1/2
.5|1/2
3.14|3.14159
0.333333|1/3
0.333|1/3
0.3333333|1/3
2/4|1/2
-1/2|1/2
\frac{1}{2}|1/2
\frac{1}{2}|0.5
\dfrac{3}{4}|\frac{3}{4}
\tfrac34|3/4
\frac12|0.5
-\frac{1}{2}|-0.5
\frac{-1}{2}|-1/2
\frac{2}{3}|0.66
1\frac{1}{2}|3/2
$5$|5
$\frac{7}{3}$|7/3
\(12\)|12
$18|18
$1,200.50|1200.5
50%|50
50\%|50
50%|0.5
12.5 percent|12.5%
5%|50
12 apples|12
12 apples|13
5 cm|5
5\text{ cm}|5
5 km|5 kilometers
30^\circ|30
90 degrees|90
\mathbf{42}|42
3 \times 10^4|30000
3 \times 10^4|3000
x = 5|5
3+4=7|7
\sqrt{2}|\sqrt{2}
2\sqrt{3}|\sqrt{12}
\frac{\sqrt{2}}{2}|\frac{1}{\sqrt{2}}
\pi|3.14
2\pi|2\pi
\pi/2|\frac{\pi}{2}
(1,2)|(2,1)
\{1,2\}|\{2,1\}
[0,1)|(0,1]
x^2+1|x^2-1
The answer is 42.|42
42.|42
none of them|42
\infty|\infty
10^{100}|10^{100}
2x|2
A|B
""".strip().splitlines()

# answer | reference | our score | why math-verify's opposite verdict is not ours
DISAGREED = r"""
+5|5|1|an explicit plus sign
−3|-3|1|the typographic minus sign
1{,}234|1234|1|LaTeX's thousands separator
1 1/2|1.5|1|a mixed number in plain text
\$18|18|1|an escaped dollar sign
1e3|1000|1|scientific notation
2.5e-3|0.0025|1|scientific notation
(1,2)|(1,2)|1|identical text, outside LaTeX delimiters
[0,1)|[0,1)|1|identical text, outside LaTeX delimiters
x^2+2x+1|(x+1)^2|1|a formula outside LaTeX delimiters
A|A|1|an option letter
yes|yes|1|a word
5 cm|5 m|0|two units that differ
5 or 7|7|0|two guesses
5, 6, 7|7|0|three guesses
1 2 3 7|7|0|four guesses
3+4|7|0|not computed
3-4|-1|0|not computed
2 \cdot 5|10|0|not computed
$2^{10}$|1024|0|not computed
\sqrt{4}|2|0|not computed
6/2|3|0|not computed
""".strip().splitlines()


@pytest.fixture(scope="module")
def accuracy() -> Accuracy:
    return Accuracy(AccuracyConfig())


def value(accuracy: Accuracy, answer: str, reference: str) -> float:
    return accuracy.score([RewardSample("q", f"<think>because</think>\n<answer>{answer}</answer>", reference)])[0].value


def oracle(answer: str, reference: str) -> bool:
    def parsed(text: str) -> list[object]:
        return math_verify.parse(f"${text}$" if "\\" in text and "$" not in text else text, parsing_timeout=None)

    return bool(math_verify.verify(parsed(reference), parsed(answer), timeout_seconds=None))


def test_the_table_is_long_enough() -> None:
    assert len(AGREED) >= 60


@pytest.mark.parametrize("line", AGREED)
def test_agrees_with_math_verify(accuracy: Accuracy, line: str) -> None:
    answer, reference = line.split("|")
    assert value(accuracy, answer, reference) == float(oracle(answer, reference))


@pytest.mark.parametrize("line", DISAGREED)
def test_differs_from_math_verify_on_purpose(accuracy: Accuracy, line: str) -> None:
    answer, reference, ours, why = line.split("|")
    assert value(accuracy, answer, reference) == float(ours), why
    assert oracle(answer, reference) != bool(int(ours)), "math-verify agrees by now: move the line to AGREED"


def test_arithmetic_counts_where_allowed() -> None:
    accuracy = Accuracy(AccuracyConfig(allow_arithmetic=True))
    for answer, reference in [("3+4", "7"), ("6/2", "3"), ("2^{10}", "1024"), (r"\sqrt{4}", "2"), ("2**10", "1024")]:
        assert value(accuracy, answer, reference) == 1, answer
    assert value(accuracy, "3+5", "7") == 0


@pytest.mark.parametrize("answer", [
    "5 (6) 7", r"5 \, 6 \, 7", r"$\frac12$ or $7$", "x=5, x=7", "5 = 6 = 7", "5^ 6*7", r"5 \text{ or } 7", "1/2 or 7", "a=5, 7"])
@pytest.mark.parametrize("reference", ["5", "7"])
def test_several_guesses_do_not_pay(accuracy: Accuracy, answer: str, reference: str) -> None:
    assert value(accuracy, answer, reference) == 0


@pytest.mark.parametrize("answer", ["10^10^10", "9^{9^{9^9}}", "2^99999999", "1e999999999", "99999!", "10^{10^{10}} x"])
def test_an_answer_too_large_to_compute_scores_0_at_once(answer: str) -> None:
    accuracy = Accuracy(AccuracyConfig(allow_arithmetic=True))
    start = time.monotonic()
    assert value(accuracy, answer, "42") == 0
    assert value(accuracy, answer, "x+1") == 0
    assert time.monotonic() - start < 2


def test_long_input_scores_0_with_a_reason_and_in_linear_time(accuracy: Accuracy) -> None:
    start = time.monotonic()
    for body in ("7" * 100_000, "(" * 100_000, "7 " * 50_000, "\\frac{" * 16_000, "<answer>" * 12_000, "{" * 100_000):
        score = accuracy.score([RewardSample("q", f"<think>t</think><answer>{body}</answer>", "7")])[0]
        assert score.value == 0
        assert score.explanation
    assert time.monotonic() - start < 1


def test_unicode_answers(accuracy: Accuracy) -> None:
    assert value(accuracy, "答案", "答案") == 1
    assert value(accuracy, "\ud800", "7") == 0
    assert value(accuracy, "7 個", "7") == 1


def test_a_reference_is_required(accuracy: Accuracy) -> None:
    with pytest.raises(ValueError, match="no reference answer"):
        accuracy.score([RewardSample("q", "<answer>7</answer>")])


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="answer_tag, boxed, last_number, auto"):
        AccuracyConfig(extract="tag")  # type: ignore[arg-type]


@pytest.mark.parametrize(("completion", "mode", "answer"), [
    ("<think>5</think><answer>7</answer>", "answer_tag", "7"),
    ("5</think> <answer> 7 </answer>", "answer_tag", "7"),  # <think> was in the prompt
    ("<answer>7</answer>", "answer_tag", "7"),
    (r"<think>t</think><answer>It is \boxed{\frac{1}{2}}.</answer>", "answer_tag", r"\frac{1}{2}"),
    ("<think>t</think> 7", "answer_tag", None),
    (r"<think>t</think> \boxed{7}", "answer_tag", None),
    ("<think>t</think><answer>7</answer><answer>8</answer>", "answer_tag", None),
    ("<think><answer>7</answer></think>", "answer_tag", None),
    ("<think><answer>7</answer>", "answer_tag", None),
    ("<think>t</think><answer>7", "answer_tag", None),
    ("<think>t</think></answer>7<answer>", "answer_tag", None),
    ("<think>t</think><answer> </answer>", "answer_tag", None),
    ("", "answer_tag", None),
    (r"<think>\boxed{5}</think> so \boxed{6} no \boxed{7}", "boxed", "7"),
    (r"<think>\boxed{5}</think> so 7", "boxed", None),
    (r"\boxed{\{1, 2\}}", "boxed", r"\{1, 2\}"),
    (r"\boxed{7", "boxed", None),
    ("<think>5</think> 6 then -1,234.5.", "last_number", "-1,234.5"),
    ("<think>5</think> nothing", "last_number", None),
    ("one 5, two 7", "auto", "7"),
    (r"\boxed{7} of 9", "auto", "7"),
    (r"<answer>7</answer> \boxed{9}", "auto", "7"),
    (r"<answer>7 \boxed{9}", "auto", None),
])
def test_extraction(completion: str, mode: str, answer: str | None) -> None:
    found = extract_answer(completion, mode)  # type: ignore[arg-type]
    assert found.answer == answer
    assert bool(found.reason) == (answer is None)


def test_what_is_not_a_plain_number() -> None:
    for text in ("", "x", "2x", "3+4", "5 or 7", "1,23", "--", "1/0", r"\frac{1}{0}", "5 6", "7" * 300, "1e9999"):
        assert parse_number(text) is None, text


@pytest.mark.parametrize(("answer", "value"), [
    ("a9", 0.0), ("x_9", 0.0), ("v9.", 0.0), ("the answer is a9", 0.0), ("it is 9", 1.0), ("答案是9", 1.0), ("A1 gives 9", 1.0), ("9 apples", 1.0)])
def test_a_digit_in_a_name_is_no_answer(answer: str, value: float) -> None:
    sample = RewardSample("what is 4+5?", f"<think>x</think><answer>{answer}</answer>", "9")
    assert Accuracy(AccuracyConfig()).score([sample])[0].value == value
