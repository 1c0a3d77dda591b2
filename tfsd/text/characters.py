"""Tables of characters for the graph tokenizer, made with the libraries that the Python tokenizer calls.

So both follow the same version of Unicode, whichever one TensorFlow's own string operations were built with. No TensorFlow.
"""

import html
import html.entities
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import regex
from ftfy import chardata, fixes

from tfsd.text.bpe import WORDS

CAPITAL_SIGMA, FINAL_SIGMA, SIGMA = 0x3A3, 0x3C2, 0x3C3
COMPOSED_BELOW = 0x300  # text of lower code points alone is in normal form C
_SURROGATES = range(0xD800, 0xE000)
_PLANE = 0x10000
_HANGUL_LEADS, _HANGUL_VOWELS, _HANGUL_TAILS = 19, 21, 28  # Unicode 3.12


class Replacements(NamedTuple):
    """Code points and what each becomes: `values[starts[i] : starts[i + 1]]`, none or several."""

    keys: np.ndarray  # [K] int32, ascending
    starts: np.ndarray  # [K + 1] int32
    values: np.ndarray  # [V + 1] int32; the last one stands for nothing

    @classmethod
    def of(cls, texts: dict[int, str]) -> "Replacements":
        """Returns the table of a dict from code points to texts."""
        keys = sorted(texts)
        starts = np.cumsum([0, *(len(texts[key]) for key in keys)])
        values = [ord(letter) for key in keys for letter in texts[key]]
        return cls(np.array(keys, np.int32), starts.astype(np.int32), np.array([*values, 0], np.int32))


class Composition(NamedTuple):
    """What it takes to bring text into Unicode's normal form C. Syllables of Hangul are composed, too, but not taken apart."""

    decompositions: Replacements
    class_keys: np.ndarray  # [K] int32, ascending: the characters with a combining class
    classes: np.ndarray  # [K] int32: theirs, 1 to 254
    pairs: np.ndarray  # [P] int64, ascending: first << 21 | second
    composed: np.ndarray  # [P] int32: what they make together


@lru_cache(maxsize=1)
def _characters() -> tuple[str, str]:
    """Returns all characters in order, in two strings: those before and those after the surrogates."""
    return "".join(map(chr, range(_SURROGATES.start))), "".join(map(chr, range(_SURROGATES.stop, 0x110000)))


def _pick(accept: Callable[[str], bool]) -> list[int]:
    return [ord(letter) for part in _characters() for letter in part if accept(letter)]


def _bounds(codes: Iterable[int]) -> np.ndarray:
    """Returns where runs of ascending `codes` begin and where they have ended, in turn."""
    codes = np.fromiter(codes, np.int32)
    steps = np.flatnonzero(np.diff(codes) != 1)
    firsts, lasts = codes[np.r_[0, steps + 1]], codes[np.r_[steps, len(codes) - 1]]
    return np.stack([firsts, lasts + 1], axis=1).ravel().astype(np.int32)


def _matching(pattern: str) -> list[int]:
    """Returns the code points within the matches of a pattern, with case ignored as CLIP's does."""
    runs = regex.compile(pattern, regex.IGNORECASE)
    return [ord(letter) for part in _characters() for run in runs.finditer(part) for letter in run[0]]


def _re2_class(bounds: np.ndarray) -> str:
    """Returns the inside of a character class of RE2 with just the code points within `bounds`."""
    return "".join(rf"\x{{{first:x}}}-\x{{{stop - 1:x}}}" for first, stop in bounds.reshape(-1, 2).tolist())


@lru_cache(maxsize=1)
def word_bounds() -> tuple[np.ndarray, np.ndarray]:
    """Returns bounds of what CLIP's pattern takes for letters, and for numbers."""
    return _bounds(_matching(r"\p{L}+")), _bounds(_matching(r"\p{N}+"))


@lru_cache(maxsize=1)
def space_bounds() -> tuple[np.ndarray, np.ndarray]:
    """Returns bounds of what `str.strip` takes from both ends, and of what then parts words.

    The second covers U+0345, too: `regex`, when it ignores case, finds it in no word, so that it only parts words.
    """
    inside = set(_matching(WORDS))
    return _bounds(_pick(str.isspace)), _bounds(_pick(lambda letter: ord(letter) not in inside))


@lru_cache(maxsize=2)
def word_pattern(start: str, end: str) -> str:
    """Returns CLIP's pattern of words as RE2 understands it, for cleaned text; its one group is the word.

    A long s, which ignoring case makes equal to s, has no lower case and is named for itself.
    """
    letters, numbers = map(_re2_class, word_bounds())
    marks = "|".join(regex.escape(mark).replace("s", "[s\u017f]") for mark in (start, end))
    return rf"({marks}|'(?:[s\x{{17f}}]|t|re|ve|m|ll|d)|[{letters}]+|[{numbers}]|[^ {letters}{numbers}]+)"


@lru_cache(maxsize=1)
def space_patterns() -> tuple[str, str]:
    """Returns patterns of RE2: what `str.strip` takes from both ends, and what then becomes one space."""
    ends, parting = map(_re2_class, space_bounds())
    return rf"^[{ends}]+|[{ends}]+$", rf"[{parting}]+"


@lru_cache(maxsize=1)
def lower_case() -> Replacements:
    """Returns the lower case of every character that has one. Capital sigma is left out: see `sigma_classes`."""
    table = {ord(letter): letter.lower() for part in _characters() for letter in part if letter.lower() != letter}
    del table[CAPITAL_SIGMA]
    return Replacements.of(table)


@lru_cache(maxsize=1)
def sigma_classes() -> tuple[np.ndarray, np.ndarray]:
    """Returns bounds of the characters that a capital sigma looks through for its neighbours, and of those with case.

    A capital sigma becomes a final one after a character with case, unless another follows: Unicode 3.13, Final_Sigma.
    """
    cased = _pick(lambda letter: (letter + "\u03a3").lower()[-1] == "\u03c2")
    either = _pick(lambda letter: ("a" + letter + "\u03a3").lower()[-1] == "\u03c2")
    return _bounds(sorted(set(either) - set(cased))), _bounds(cased)


@lru_cache(maxsize=1)
def repairs() -> Replacements:
    """Returns what ftfy makes of single characters: quotes, ligatures, widths, line breaks. All are in the first plane."""
    table = {}
    for letter in _characters()[0] + _characters()[1][: _PLANE - _SURROGATES.stop]:
        text = letter
        for fix in (fixes.fix_c1_controls, fixes.fix_latin_ligatures, fixes.fix_character_width, fixes.uncurl_quotes):
            text = fix(text)
        text = fixes.fix_line_breaks(text)
        if text != letter:
            table[ord(letter)] = text
    return Replacements.of(table)


def removed_pattern() -> str:
    """Returns a pattern of RE2: the control characters that ftfy removes."""
    return f"[{_re2_class(removed_bounds())}]+"


def removed_bounds() -> np.ndarray:
    """Returns bounds of the control characters that ftfy removes."""
    return _bounds(sorted(chardata.CONTROL_CHARS))


def digit_bounds() -> np.ndarray:
    """Returns bounds of the decimal digits, which terminals' escapes hold."""
    return _bounds(_matching(r"\p{Nd}+"))


@lru_cache(maxsize=1)
def composition() -> Composition:
    """Returns the tables of normal form C."""
    decompositions, classes, pairs = {}, {}, {}
    for letter in (letter for part in _characters() for letter in part):
        if combining := unicodedata.combining(letter):
            classes[ord(letter)] = combining
        parts = unicodedata.decomposition(letter)
        if not parts or parts.startswith("<"):
            continue
        decompositions[ord(letter)] = unicodedata.normalize("NFD", letter)
        codes = [int(part, 16) for part in parts.split()]
        if len(codes) == 2 and unicodedata.normalize("NFC", letter) == letter:
            pairs[codes[0] << 21 | codes[1]] = ord(letter)
    for syllable in range(_HANGUL_LEADS * _HANGUL_VOWELS):
        lead, vowel = divmod(syllable, _HANGUL_VOWELS)
        code = 0xAC00 + syllable * _HANGUL_TAILS
        pairs[0x1100 + lead << 21 | 0x1161 + vowel] = code
        pairs.update({code << 21 | 0x11A7 + tail: code + tail for tail in range(1, _HANGUL_TAILS)})
    keys, marks = sorted(pairs), sorted(classes)
    return Composition(
        Replacements.of(decompositions),
        np.array(marks, np.int32),
        np.array([classes[mark] for mark in marks], np.int32),
        np.array(keys, np.int64),
        np.array([pairs[key] for key in keys], np.int32),
    )


def entities(*, strict: bool) -> dict[str, str]:
    """Returns the named characters of HTML without their ampersand, as `html.unescape` or, if `strict`, ftfy reads them."""
    if not strict:
        return dict(html.entities.html5)
    found = {name[1:]: text for name, text in chardata.HTML_ENTITIES.items()}
    return {name: text for name, text in found.items() if chardata.HTML_ENTITY_RE.fullmatch("&" + name)}


@lru_cache(maxsize=1)
def references() -> Replacements:
    """Returns what numeric references stand for where they do not stand for their own code point."""
    suspects = [*range(0x20), *range(0x7F, 0xA0), *range(0xFDD0, 0xFDF0)]
    suspects += [plane * _PLANE + last for plane in range(17) for last in (0xFFFE, 0xFFFF)]
    texts = {code: html.unescape(f"&#{code};") for code in suspects}
    return Replacements.of({code: text for code, text in texts.items() if text != chr(code)})
