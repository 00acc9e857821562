"""Shares of languages: what counts as a word, whose word it is, and what is no language at all."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping

import pytest

from r1mega.data.language import LATIN, ScriptDetector, language_share, strip_formulas, word_shares
from r1mega.errors import ConfigError

ENGLISH = "We add the first number to the second, so the result is bigger than both of them."
OTHERS = {
    "de": "Wir addieren die beiden Zahlen und dann ist das Ergebnis nicht kleiner als eine von ihnen.",
    "fr": "Nous ajoutons les deux nombres et donc le résultat est plus grand que chacun dans la liste.",
    "es": "Sumamos los dos números y entonces el resultado es más grande que cada uno por separado.",
    "it": "Sommiamo i due numeri e quindi il risultato è più grande di ciascuno della lista.",
    "pt": "Somamos os dois números e então o resultado não é menor que cada um dos dois.",
    "nl": "Wij tellen de twee getallen op en dan is het resultaat niet kleiner dan een van die.",
    "ru": "Мы складываем два числа и получаем результат больше каждого из них.",
    "zh": "我们把两个数加起来，所以结果比每一个都大。",
    "ja": "二つの数を足すと、結果はどちらよりも大きくなる。",
    "ko": "두 수를 더하면 결과가 둘 다보다 크다.",
    "el": "Προσθέτουμε τους δύο αριθμούς και το αποτέλεσμα είναι μεγαλύτερο.",
    "ar": "نجمع العددين فيكون الناتج أكبر من كل منهما.",
    "hi": "हम दोनों संख्याओं को जोड़ते हैं।"}


def test_a_pure_text_is_wholly_of_its_language() -> None:
    assert word_shares(ENGLISH) == {"en": 1.0}
    for language, text in OTHERS.items():
        assert word_shares(text) == {language: 1.0}, language
        assert language_share(text, language) == 1.0
        assert language_share(text, "en") == 0.0


def test_shares_of_a_mixture_are_counts_of_words() -> None:
    """Any interleaving of n English words and m Han characters has share n / (n + m): the script decides exactly."""
    rng = random.Random(0)
    english, chinese = ["we", "then", "the", "because", "therefore", "number", "result"], "我们把两个数加起来所以结果"
    for _ in range(200):
        n, m = rng.randint(1, 30), rng.randint(0, 30)
        words = [rng.choice(english) for _ in range(n)] + [rng.choice(chinese) for _ in range(m)]
        rng.shuffle(words)
        text = "".join(word + rng.choice([" ", ", ", " 17 ", " $x+y$ ", "\n", " x "]) for word in words)
        expected = n / (n + m)
        # a sentence of words without evidence takes the language of the whole text, and is English's here in any case
        assert language_share(text, "en") == pytest.approx(expected), text
        assert language_share(text, "zh") == pytest.approx(1 - expected), text
        assert sum(word_shares(text).values()) == pytest.approx(1.0)


@pytest.mark.parametrize("piece", [
    "$\\text{the answer}$", "\\( the \\)", "\\[ is \\]", "$$ we \\\\ are $$", "\\boxed{the result}", "\\frac{the {nested} a}{b}",
    "\\begin{align} the \\end{align}", "```python\nfor the in of: pass\n```", "`the code`", "<think>", "</answer>", "<|im_start|>", "<｜end｜>",
    "12", "3.5e7", "x1", "x", "β", "sin", "https://example.org/the", "```\nthe unclosed"])
def test_what_is_no_language_counts_nowhere(piece: str) -> None:
    assert word_shares(piece) == {}
    assert language_share(f"我们 {piece}", "zh") == 1.0


def test_prices_and_comparisons_are_not_formulas() -> None:
    assert strip_formulas("costs $5 and $7 today").split() == ["costs", "$", "and", "$", "today"]
    assert "then" in strip_formulas("if a<b then c>d")


def test_words_that_nothing_places_count_for_a_target_in_the_same_letters() -> None:
    assert word_shares("Compute product") == {LATIN: 1.0}
    assert language_share("Compute product", "en") == 1.0
    assert language_share("Compute 乘积", "zh") == pytest.approx(2 / 3)


def test_sentences_of_two_latin_languages_are_told_apart() -> None:
    share = language_share(f"{ENGLISH} {OTHERS['es']}", "en")
    assert share == pytest.approx(17 / (17 + 15))  # "y" is one letter: no word


def test_numbers_between_characters_do_not_swallow_them() -> None:
    assert language_share("第3步：我们有5个数 total", "zh") == pytest.approx(7 / 8)


def test_an_english_word_in_a_chinese_text_is_counted() -> None:
    assert language_share("因此 wait 我们", "zh") == pytest.approx(4 / 5)


def test_a_text_without_words_takes_the_value_asked_for() -> None:
    assert language_share("3+5=8", "en") == 1.0
    assert language_share("", "en", without_words=0.0) == 0.0


def test_an_unknown_language_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"language 'enn' is unknown to ScriptDetector.*Did you mean 'en'"):
        language_share("text", "enn")


def test_languages_can_be_added_and_the_detector_replaced() -> None:
    invented = ScriptDetector(function_words={"xx": "zu mak lor"})
    assert language_share("mak zu doro. the sum is here", "xx", detector=invented) == pytest.approx(3 / 7)

    class Upper:
        @property
        def languages(self) -> Collection[str]:
            return ["up"]

        def count_words(self, text: str) -> Mapping[str, int]:
            words = text.split()
            return {"up": sum(word.isupper() for word in words), "low": sum(not word.isupper() for word in words)}

    assert language_share("A B c d", "up", detector=Upper()) == 0.5
