"""Names the language of a text by its script and its commonest words: enough to see that a data set is mixed, no more.

Scripts settle most of the world's languages; languages in Latin script are told apart by their stop words (the commonest words
of each, Zipf's law makes a few dozen of them a third of any text). A text with too few of them is "unclear", never guessed.
A trained detector (lingua, fastText) is more exact, but brings 100 MB of models or a compiler; a mixed set shows here too.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from importlib.resources import files

import yaml

UNCLEAR = "unclear"

_WORD = re.compile(r"[^\W\d_]+")
_SHORTEST = 20  # letters; below that nobody can tell
_FEWEST = 3  # different stop words that a language needs: one letter said twice ("a", "i") is a word of many languages
_LONGEST = 600  # characters looked at
_MARGIN = 1.25  # by how much the best language must beat the next


@cache
def _languages_of() -> dict[str, list[str]]:
    """The languages that each stop word is one of."""
    text = files("tuneport.core.data").joinpath("stop_words.yaml").read_text(encoding="utf-8")
    words: dict[str, list[str]] = {}
    for language, listed in yaml.safe_load(text).items():
        for word in listed.split():
            words.setdefault(word, []).append(language)
    return words

_SCRIPTS = (  # (first, last, name); the first that holds most letters names the language or script
    (0x0370, 0x03FF, "el"),
    (0x0400, 0x052F, "cyrillic"),
    (0x0530, 0x058F, "hy"),
    (0x0590, 0x05FF, "he"),
    (0x0600, 0x06FF, "arabic"),
    (0x0900, 0x097F, "devanagari"),
    (0x0980, 0x09FF, "bn"),
    (0x0B80, 0x0BFF, "ta"),
    (0x0C00, 0x0C7F, "te"),
    (0x0E00, 0x0E7F, "th"),
    (0x10A0, 0x10FF, "ka"),
    (0x3040, 0x30FF, "ja"),
    (0x4E00, 0x9FFF, "han"),
    (0xAC00, 0xD7AF, "ko"),
)


def language_of(text: str) -> str:
    """A language code ("en"), a script where it names several languages ("cyrillic"), or "unclear"."""
    text = text[:_LONGEST].lower()
    words = _WORD.findall(text)
    letters = sum(map(len, words))
    if not text.isascii() and (script := _script(words, letters)):
        return script
    if letters < _SHORTEST:
        return UNCLEAR
    stop_words = _languages_of()
    votes: Counter[str] = Counter()
    for word in set(words):
        for language in stop_words.get(word, ()):
            votes[language] += 1
    best = votes.most_common(2)
    if not best or best[0][1] < _FEWEST or best[0][1] * 12 < len(set(words)) or (len(best) > 1 and best[0][1] < _MARGIN * best[1][1]):
        return UNCLEAR
    return best[0][0]


def _script(words: list[str], letters: int) -> str:
    """The script of most letters when that is not Latin, else ""."""
    counts: Counter[str] = Counter()
    for letter in "".join(words):
        code = ord(letter)
        if code >= _SCRIPTS[0][0]:
            counts[next((name for first, last, name in _SCRIPTS if first <= code <= last), "")] += 1
    if counts["ja"] and counts["ja"] + counts["han"] > letters / 2:
        return "ja"  # kana among the Han characters
    name, count = counts.most_common(1)[0] if counts else ("", 0)
    return name if count > letters / 2 and count >= 2 else ""
