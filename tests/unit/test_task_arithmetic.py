"""The tiny world: complete, leak-free, and as unreliable as its settings say."""

import re
from collections import Counter

import pytest
from r1mega_plugins.tasks.arithmetic import OPERATIONS, Arithmetic, ArithmeticConfig

from r1mega.errors import ConfigError
from r1mega.split import split_of

WELL_FORMED = re.compile(r"<think>([^<>]*)</think><answer>(\d+)</answer>")
STATEMENT = re.compile(r"(?<![\d+*-])(\d+)([+*-])(\d+)(?![\d+*-])")  # a whole problem, with or without its result


def identity(a: str, operation: str, b: str) -> str:
    return f"{a}{operation}{b}" if operation == "-" or int(a) <= int(b) else f"{b}{operation}{a}"


def ids(task: Arithmetic, split: str) -> set[str]:
    return {prompt.id for prompt in task.prompts(split)}


def clean(**settings) -> ArithmeticConfig:
    return ArithmeticConfig(**{"wrong_rate": 0.0, "malformed_rate": 0.0, **settings})


def test_shipped_settings_hold_out_at_least_200_problems():
    task = Arithmetic(ArithmeticConfig())
    assert len(task.prompts("test")) >= 200
    assert len(task.prompts("train")) >= 500


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_problem_is_there_once_with_its_right_answer(operation):
    task = Arithmetic(ArithmeticConfig(operations=[operation], max_operand=25))
    prompts = [*task.prompts("train"), *task.prompts("test")]
    assert len(prompts) == 26 * 27 // 2
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        a, sign, b = re.fullmatch(r"(\d+)([+*-])(\d+)=", prompt.question).groups()
        assert int(prompt.answer) == eval(f"{a}{sign}{b}") >= 0
        assert prompt.id == identity(a, sign, b)
    turned = sum(prompt.question != f"{prompt.id}=" for prompt in prompts)
    assert turned == 0 if operation == "-" else turned > 100, "either order is asked where order does not matter"


def test_no_problem_is_on_both_sides_and_no_side_depends_on_the_pool_or_the_seed():
    small, large = (Arithmetic(ArithmeticConfig(operations=ops, max_operand=top), seed=seed)
                    for ops, top, seed in ((["+"], 30, 1), (["-", "+"], 60, 2)))
    assert not ids(large, "train") & ids(large, "test")
    assert ids(small, "train") < ids(large, "train")
    assert ids(small, "test") < ids(large, "test")


def test_operands_exchanged_are_one_problem():
    task = Arithmetic(ArithmeticConfig(max_operand=12))
    assert {"3+5", "7+12"} <= ids(task, "train") | ids(task, "test")
    assert not {"5+3", "12+7"} & (ids(task, "train") | ids(task, "test"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_documents_state_no_test_problem_anywhere(operation):
    task = Arithmetic(ArithmeticConfig(operations=[operation], max_operand=30))
    held_out = ids(task, "test")
    seen = set()
    for question, response in task.documents(8000, seed=0):
        seen.add(identity(*STATEMENT.match(question).groups()))
        stated = {identity(*match) for match in STATEMENT.findall(f"{question} {response}")}
        assert not stated & held_out, (question, response)
    assert seen == ids(task, "train"), "every training problem is drawn, and only those"


def test_single_digit_problems_which_chains_quote_are_never_held_out():
    task = Arithmetic(ArithmeticConfig(test_fraction=1.0))
    assert len(task.prompts("train")) == 55
    assert split_of("3+5", 1.0, 0) == "test"  # what the rule would say without the exception


@pytest.mark.parametrize("operation", OPERATIONS)
def test_right_chains_are_true_and_lead_to_the_answer(operation):
    task = Arithmetic(clean(operations=[operation], max_operand=120, chain_rate=1.0))
    for question, response in task.documents(2000, seed=3):
        chain, answer = WELL_FORMED.fullmatch(response).groups()
        assert int(answer) == eval(question.rstrip("="))
        steps = re.findall(r"([\d+*-]+)=(\d+)", chain)
        assert steps
        assert all(eval(left) == int(right) for left, right in steps), (question, chain)
        digits = [right[-1] for _, right in steps[:-1]]
        assert int(steps[-1][1] + "".join(reversed(digits))) == int(answer), "the answer is the last result before the columns' digits"


def test_known_chains():
    from r1mega_plugins.tasks.arithmetic import Problem, _think

    assert _think(Problem(17, "+", 25), None) == ("7+5=12 c1 1+2+1=4", 42)
    assert _think(Problem(42, "-", 17), None) == ("10+2-7=5 b1 4-1-1=2", 25)
    assert _think(Problem(17, "*", 25), None) == ("7*5=35 c3 7*2+1*5+3=22 c2 1*2+2=4", 425)


def test_rates_are_what_was_asked_for():
    config = ArithmeticConfig(chain_rate=0.7, wrong_rate=0.4, chain_error_rate=0.5, malformed_rate=0.2)
    count = Counter()
    documents = 6000
    for question, response in Arithmetic(config).documents(documents, seed=1):
        formed = WELL_FORMED.fullmatch(response)
        answer = int(re.findall(r"\d+", response.split("</think>")[0] if response.startswith("<answer>") else response)[-1])
        wrong = answer != eval(question.rstrip("="))
        chain = "=" in response
        false_step = any(eval(left) != int(right) for left, right in re.findall(r"([\d+*-]+)=(\d+)", response))
        count.update(malformed=formed is None, chain=chain, false_step=false_step)
        if formed:
            count.update(formed=1, wrong=wrong)
        assert wrong or not false_step or formed is None, (question, response)
    assert abs(count["malformed"] / documents - 0.2) < 0.03
    assert abs(count["chain"] / documents - 0.7) < 0.03
    assert abs(count["wrong"] / count["formed"] - 0.4) < 0.03
    assert abs(count["false_step"] / documents - 0.7 * 0.4 * 0.5) < 0.02


@pytest.mark.parametrize("operation", OPERATIONS)
def test_chain_errors_carry_to_a_wrong_answer_and_other_errors_leave_the_chain_right(operation):
    settings = {"operations": [operation], "max_operand": 60, "chain_rate": 1.0, "wrong_rate": 1.0, "malformed_rate": 0.0}
    for rate in (0.0, 1.0):
        for question, response in Arithmetic(ArithmeticConfig(chain_error_rate=rate, **settings)).documents(1500, seed=2):
            chain, answer = WELL_FORMED.fullmatch(response).groups()
            steps = re.findall(r"([\d+*-]+)=(\d+)", chain)
            led_to = int(steps[-1][1] + "".join(right[-1] for _, right in reversed(steps[:-1])))
            assert int(answer) != eval(question.rstrip("=")), (question, response)
            assert sum(eval(left) != int(right) for left, right in steps) == rate, (question, response)
            assert (int(answer) == led_to) == (rate == 1.0), (question, response)


def test_malformed_documents_are_malformed_in_several_ways_and_keep_the_answer():
    config = ArithmeticConfig(wrong_rate=0.0, malformed_rate=1.0)
    shapes = set()
    for question, response in Arithmetic(config).documents(300, seed=0):
        assert not WELL_FORMED.fullmatch(response)
        assert str(eval(question.rstrip("="))) in re.findall(r"\d+", response)
        shapes.add(re.sub(r"[^<>]*(</?\w+>)?", lambda match: match[1] or "", response))
    assert len(shapes) >= 6


def test_documents_are_reproducible_and_differ_by_seed():
    task = Arithmetic(ArithmeticConfig())
    assert list(task.documents(50, 7)) == list(Arithmetic(ArithmeticConfig(), seed=9).documents(50, 7))
    assert list(task.documents(50, 7)) != list(task.documents(50, 8))
    assert list(task.documents(50, 7))[:20] == list(task.documents(20, 7))


def test_first_test_prompts_are_a_fair_sample():
    prompts = Arithmetic(ArithmeticConfig()).prompts("test")
    mean = sum(int(prompt.answer) for prompt in prompts) / len(prompts)
    first = sum(int(prompt.answer) for prompt in prompts[:60]) / 60
    assert abs(first - mean) < 6  # the answers' spread is about 15


@pytest.mark.parametrize(("settings", "message"), [
    ({"operations": ["/"]}, "task.operations must be a non-empty list of"),
    ({"operations": []}, "task.operations must be a non-empty list of"),
    ({"max_operand": 0}, "task.max_operand must be at least 1, got 0"),
    ({"wrong_rate": 1.2}, "task.wrong_rate must be between 0 and 1, got 1.2"),
])
def test_impossible_settings_name_the_key(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        ArithmeticConfig(**settings)
