"""Finds words that a model with a small vocabulary never learned, and suggests others."""

import contextlib
import contextvars
import difflib
import unicodedata
from collections.abc import Iterable, Iterator

from tfsd.errors import TfsdWarning, shown, warn
from tfsd.specs import CLIPSpec
from tfsd.text.bpe import Tokenizer
from tfsd.text.vocabulary import vocabulary

# What the embedded model draws: of its words the ones that help most where another object was asked for.
OBJECTS = ("ball", "boat", "car", "cat", "cup", "fish", "flower", "heart", "house", "moon", "mushroom", "rocket", "star", "tree")
_CLOSE = 0.8  # likeness from which on a word may be another one misspelt
_MAX_LISTED = 10  # unknown words in a message
_MAX_KNOWN = 20  # known words, where there are no known objects
_AROUND = '.,;:!?()[]{}"'  # stands around words
_MAX_LETTERS = 40  # of a word that is compared
_chosen_here = contextvars.ContextVar("chosen_here", default=False)


class UnknownWordsWarning(TfsdWarning):
    """A prompt has words that the model never learned, so that they do not show in the image."""


def known_words(spec: CLIPSpec) -> list[str]:
    """Returns the words that have their own row in a small vocabulary, the most common in English first."""
    table = vocabulary()
    return [table.pieces[i].decode("utf-8") for i in spec.kept_tokens if i < len(table.pieces) and table.ends_word[i]]


def unknown_words(tokenizer: Tokenizer, prompts: str | Iterable[str]) -> list[str]:
    """Returns the words of prompts that the model never learned, in lower case, each once, in order.

    There are none for a model with CLIP's whole vocabulary. Punctuation, ends of words such as 's, and what is cut off do
    not count.
    Raises: as `Tokenizer.encode`.
    """
    kept = set(tokenizer.spec.kept_tokens)
    if not kept:
        return []
    found = {}
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        for match, ids in tokenizer.kept_words(prompt):
            if not kept.issuperset(ids) and match[0][0] != "'" and any(map(_says_something, match[0])):
                found[_as_written(match)] = True
    return list(found)


def _says_something(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character) == "So"  # an emoji, say


def _as_written(match) -> str:
    """Returns a word as it stands in the prompt: CLIP parts words at apostrophes, 'red' into 're, d and '."""
    text = match.string
    begin, end = text.rfind(" ", 0, match.start()) + 1, text.find(" ", match.end())
    whole = text[begin : end if end >= 0 else len(text)]
    return (whole if "'" in whole else match[0]).strip(_AROUND)


def unknown_words_message(spec: CLIPSpec, words: Iterable[str], name: str = "prompt") -> str:
    """Returns a sentence on words that a model never learned in the text called `name`, with what it knows instead."""
    words, known = list(words), known_words(spec)
    parts = []
    for word in words[:_MAX_LISTED]:
        close = difflib.get_close_matches(word[:_MAX_LETTERS], known, n=1, cutoff=_CLOSE) if len(word) > 3 else []
        parts.append(shown(word) + (f" (did you mean {shown(close[0])}?)" if close else ""))
    parts += [f"{len(words) - _MAX_LISTED} more"] if len(words) > _MAX_LISTED else []
    objects = [word for word in OBJECTS if word in known]
    knows = f"these objects: {', '.join(objects)}" if objects else f"words such as {', '.join(known[:_MAX_KNOWN])}"
    return f"{name} has words that the model never learned: {', '.join(parts)}. It knows {knows}."


@contextlib.contextmanager
def own_prompts() -> Iterator[None]:
    """Turns the warning off for prompts that this package chose, such as those of a report: a caller cannot change them."""
    token = _chosen_here.set(True)
    try:
        yield
    finally:
        _chosen_here.reset(token)


def warn_of_unknown_words(tokenizer: Tokenizer, prompts: Iterable[str], name: str, told: set[frozenset[str]]):
    """Warns of words in the prompts called `name` that the model never learned, unless `told` has the same words; adds them."""
    if _chosen_here.get():
        return
    words = unknown_words(tokenizer, dict.fromkeys(prompts))
    if words and frozenset(words) not in told:
        told.add(frozenset(words))
        warn(unknown_words_message(tokenizer.spec, words, name), UnknownWordsWarning)
