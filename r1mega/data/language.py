"""Which language a text is written in, word by word: the paper's language-consistency measure and the filter for mixed languages.

    share(target) = Num(Words_target) / Num(Words)                                      [R1 paper, section on the language-consistency reward]

A word is a run of letters; every Han or kana character is a word of its own. What belongs to no language counts nowhere: code, LaTeX, numbers,
tags, links, single letters (variables) and names of functions such as `sin`.

Another detector is a class with the two members of `LanguageDetector`; everything that measures languages takes one as an argument.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Protocol

from r1mega.errors import ConfigError, nearest
from r1mega.types import Prompt

LATIN = "latin"  # words in Latin letters whose language nothing tells

SCRIPT_LANGUAGES: Mapping[str, str] = {
    "CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CYRILLIC": "ru", "GREEK": "el", "ARABIC": "ar", "HEBREW": "he",
    "DEVANAGARI": "hi", "THAI": "th", "BENGALI": "bn", "TAMIL": "ta", "TELUGU": "te", "ARMENIAN": "hy", "GEORGIAN": "ka"}
"""The language that a script stands for, by the first word of its characters' Unicode names."""

FUNCTION_WORDS: Mapping[str, str] = {
    "en": "the of and to is are was were be been it its that this these those we you he she they them our your for with from by at on as or if then "
          "so but not no do does did have has had will would can could should must may there here what which who how when where because therefore "
          "thus hence let wait first next now all each any some more than into out up about my me us an yes also only after before",
    "de": "der die das den dem des ein eine einen einem einer und oder aber nicht ist sind war waren wird werden wir ich du er sie es ihr für mit von "
          "zu zum zur bei nach auf aus an am im dass daß wenn dann weil also wie was wo wer kein keine auch nur noch schon jetzt durch über unter "
          "zwischen hat haben muss müssen kann können sich",
    "fr": "le la les un une des du de et ou mais ne pas est sont était être nous vous il elle ils elles je tu que qui quoi dont où pour par avec sans "
          "dans sur sous donc car si alors ce cet cette ces son sa ses leur leurs mon ma mes notre votre au aux plus moins très aussi comme on peut "
          "faut ont avons avoir maintenant",
    "es": "el la los las un una unos unas de del y o pero no es son era ser estar está nosotros ellos ella yo tú que quien cuál donde para por con sin "
          "en sobre entonces porque si como este esta estos estas su sus mi nuestro al más menos muy también hay tiene tenemos puede ahora ya se lo le",
    "it": "il lo la i gli le un uno una di del della dei delle e o ma non è sono era essere noi voi lui lei io tu che chi cui dove per con senza in nel "
          "nella su sul allora quindi perché se come questo questa questi queste suo sua mio nostro al alla più meno molto anche ha abbiamo può adesso ora si",
    "pt": "o a os as um uma uns umas de do da dos das e ou mas não é são era ser estar está nós eles ela eu tu você que quem onde para por com sem em no "
          "na nos nas sobre então porque se como este esta isto isso seu sua meu nosso ao à mais menos muito também há tem temos pode agora já",
    "nl": "de het een en of maar niet is zijn was waren wordt worden wij we jij hij zij ze ik je dat die dit deze wat wie waar hoe voor met van naar bij "
          "op uit aan in door over onder tussen als dan omdat dus ook nog al nu geen heeft hebben moet moeten kan kunnen er om te"}
"""What tells languages in Latin letters apart: their commonest words, a string of them for each."""

_NOT_LANGUAGE = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`"  # code
    r"|\\begin\{([a-zA-Z*]+)\}.*?\\end\{\1\}|\\\[.*?\\\]|\\\(.*?\\\)|\$\$.*?\$\$"  # LaTeX
    r"|\$(?!\s)(?:\\.|[^$\\]){1,500}?(?<!\s)\$(?!\d)"  # $x$, but not "$5 and $7"
    r"|\\[a-zA-Z]+\*?(?:\s?\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*"
    r"|</?[A-Za-z][\w-]*\s?/?>|<[|｜][^|｜<>]*[|｜]>"  # tags and special tokens
    r"|https?://[^\s\u3000-\u9fff]+|[A-Za-z_]*\d[A-Za-z_\d]*", re.DOTALL)  # links; numbers and names with digits
_SYMBOLS = r"\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9d"
_MARKS = r"\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0903\u093a-\u094f\u0980-\u0d7f\u0e31-\u0e4e"
_WORD = re.compile(rf"[{_SYMBOLS}]|(?:(?![{_SYMBOLS}])[^\W\d_])(?:(?![{_SYMBOLS}])[^\W\d_]|[{_MARKS}]|['’](?=[^\W\d_]))*")
_SENTENCE = re.compile(r"[.!?;:\n。！？；：]+")
_CONTENT = re.compile(rf"[{_SYMBOLS}]|(?:(?![{_SYMBOLS}])[^\W_]|[{_MARKS}])+")
_FUNCTION_NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt max min mod gcd lcm lim det dim deg"
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())


class LanguageDetector(Protocol):
    """Counts the words of a text by language."""

    @property
    def languages(self) -> Collection[str]:
        """The ISO 639-1 codes it can find."""
        ...

    def count_words(self, text: str) -> Mapping[str, int]:
        """Words by language code; what cannot be told may go under `LATIN` or another script's name in lower case."""
        ...


class ScriptDetector:
    """Languages by script, exactly; among those in Latin letters, by function words, sentence by sentence.

    A sentence in Latin letters belongs to the language with most evidence in it, else with most in the whole text; without any its words are
    counted under `LATIN`. Han characters are Japanese in a paragraph with kana, else Chinese. `function_words` adds languages in Latin letters, or
    replaces their words; `scripts` does so for scripts.
    """

    def __init__(self, function_words: Mapping[str, str] | None = None, scripts: Mapping[str, str] | None = None) -> None:
        self._scripts = {**SCRIPT_LANGUAGES, **(scripts or {})}
        table = {language: frozenset(words.split()) for language, words in {**FUNCTION_WORDS, **(function_words or {})}.items()}
        self._latin = tuple(table)
        owners: dict[str, list[str]] = {}
        for language, words in table.items():
            for word in words:
                owners.setdefault(word, []).append(language)
        self._evidence = {word: {language: 1.0 / len(found) for language in found} for word, found in owners.items()}

    @property
    def languages(self) -> Collection[str]:
        return {*self._scripts.values(), *self._latin}

    def count_words(self, text: str) -> Mapping[str, int]:
        counts: Counter[str] = Counter()
        sentences: list[list[str]] = []  # of words in Latin letters
        for paragraph in strip_formulas(text).split("\n"):
            kana = any(_script(word[0]) in ("HIRAGANA", "KATAKANA") for word in _WORD.findall(paragraph))
            for sentence in _SENTENCE.split(paragraph):
                latin = []
                for word in words_of(sentence):
                    script = _script(word[0])
                    if script == "LATIN":
                        latin.append(word)
                    else:
                        counts["ja" if kana and script == "CJK" else self._scripts.get(script, script.lower())] += 1
                sentences.append(latin)
        counts.update(self._attribute(sentences))
        return counts

    def _attribute(self, sentences: list[list[str]]) -> Counter[str]:
        whole = self._best(word for sentence in sentences for word in sentence)
        counts: Counter[str] = Counter()
        for sentence in filter(None, sentences):
            counts[self._best(sentence, whole) or LATIN] += len(sentence)
        return counts

    def _best(self, words: Iterable[str], otherwise: str | None = None) -> str | None:
        """The language most words speak for; `otherwise` without evidence or, if it is among the best, in a tie."""
        evidence: Counter[str] = Counter()
        for word in words:
            evidence.update(self._evidence.get(word, {}))
        if not evidence:
            return otherwise
        most = max(evidence.values())
        best = [language for language in self._latin if evidence[language] >= most - 1e-9]
        return otherwise if otherwise in best else best[0]


DEFAULT: LanguageDetector = ScriptDetector()


def language_share(text: str, target: str, *, detector: LanguageDetector = DEFAULT, without_words: float = 1.0) -> float:
    """Num(Words_target) / Num(Words) of `text`, in [0, 1]; `without_words` where it has no word at all (formulas alone mix no languages).

    Words in Latin letters that no evidence places count as the target's if the target is a language in Latin letters. Raises `ConfigError` for a
    language the detector does not know.
    """
    if target not in detector.languages:
        raise ConfigError(f"language '{target}' is unknown to {type(detector).__name__}; it knows {', '.join(sorted(detector.languages))}."
                          f"{nearest(target, detector.languages)}")
    counts = detector.count_words(text)
    total = sum(counts.values())
    if not total:
        return without_words
    found = counts.get(target, 0) + (counts.get(LATIN, 0) if target not in SCRIPT_LANGUAGES.values() else 0)
    return found / total


def check_languages(prompts: Iterable[Prompt], measure: str, *, detector: LanguageDetector = DEFAULT) -> None:
    """Raise `ConfigError` for prompts in languages that `detector` does not know, before anything is spent on them.

    `measure` is the setting that would ask for the share of their language.
    """
    known = frozenset(detector.languages)
    unknown: dict[str, list[str]] = {}
    for prompt in prompts:
        if prompt.language not in known:
            unknown.setdefault(prompt.language, []).append(prompt.id)
    if unknown:
        found = ", ".join(f"'{language}' ({len(ids)} prompts, the first is '{ids[0]}')" for language, ids in sorted(unknown.items()))
        raise ConfigError(f"{measure} cannot measure the language of all prompts: {found}; {type(detector).__name__} knows "
                          f"{', '.join(sorted(known))}. Correct the prompts' `language`, leave them out, or switch {measure} off")


def word_shares(text: str, *, detector: LanguageDetector = DEFAULT) -> dict[str, float]:
    """The share of each language among the words of `text`, largest first; empty for a text without words, else they sum to 1."""
    counts = detector.count_words(text)
    total = sum(counts.values())
    return {language: count / total for language, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}


def strip_formulas(text: str) -> str:
    """`text` with code, LaTeX, tags, links and everything that has a digit replaced by a space each (by a line break where there was one)."""
    return _NOT_LANGUAGE.sub(lambda found: "\n" if "\n" in found[0] else " ", text)


def words_of(text: str) -> list[str]:
    """The lower-case words of a text, in order: Han and kana one character each; single letters and function names (of formulas) are none."""
    words = (found.lower().replace("’", "'") for found in _WORD.findall(text))
    return [word for word in words if (len(word) > 1 or is_symbol(word)) and word not in _FUNCTIONS]


def content_words(text: str) -> list[str]:
    """Every word and number of a text in order, for comparing texts: compatibility forms folded (NFKC), case folded, Han and kana one by one."""
    return _CONTENT.findall(unicodedata.normalize("NFKC", text).casefold())


def is_symbol(character: str) -> bool:
    """Whether a character is a word by itself (Han, kana)."""
    return _script(character) in ("CJK", "HIRAGANA", "KATAKANA")


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    name = unicodedata.name(character, "")
    if name.startswith(("HALFWIDTH KATAKANA", "IDEOGRAPHIC")):
        return "KATAKANA" if "KATAKANA" in name else "CJK"
    return name.removeprefix("FULLWIDTH ").split(" ")[0]
