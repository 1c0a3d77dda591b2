"""CLIP's tokenizer and its graph against TensorFlow Text, whose Unicode tables and patterns are those of ICU and RE2.

Characters count as far as Python's version of Unicode has them; TensorFlow Text's is newer.
"""

import sys
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tfsd.specs import CLIPSpec
from tfsd.text import Tokenizer
from tfsd.text.cleaning import compose, letters_of, lower, strings_of

if sys.platform == "win32":
    pytest.skip("TensorFlow Text has no wheels for Windows", allow_module_level=True)
import tensorflow_text as tf_text  # a failure, not a skip, where setup.py requires it

CLIP_WORDS = r"'(?i:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # OpenAI CLIP, in RE2's form
ASSIGNED = [chr(code) for code in range(1, 0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")]
STRINGS = [tf.TensorSpec([None], tf.string)]


@pytest.fixture(params=[64, pytest.param(1, marks=pytest.mark.slow)], ids=["sample", "all"])
def characters(request):
    """Characters of every script: all below U+0600, and all or a sample of the others."""
    return ASSIGNED[:1500] + ASSIGNED[1500 :: request.param]


def encoded(texts):
    return tf.constant([text.encode("utf-8") for text in texts])


def in_graph(change):
    """Returns a function from `Letters` to `Letters` as a compiled one from strings to strings."""
    return tf.function(lambda texts: strings_of(change(letters_of(texts)), tf.size(texts)), input_signature=STRINGS)


def assert_equal(texts, found, wanted):
    assert not [texts[i] for i in np.flatnonzero(found.numpy() != wanted.numpy())]


@pytest.mark.parametrize("form", ["{}", "e{}\u0301", "{}\u0323", "\u1100{}\u11a8"])
def test_normal_form_c_in_the_graph_is_that_of_icu(characters, form):
    texts = [form.format(character) for character in characters]
    assert_equal(texts, in_graph(compose)(encoded(texts)), tf_text.normalize_utf8(encoded(texts), "NFC"))


def test_lower_case_changes_nothing_but_case(characters):
    """By ICU's case folding, which is the same for a text and its lower case."""
    for lowered in (in_graph(lower)(encoded(characters)), encoded([character.lower() for character in characters])):
        assert_equal(characters, tf_text.case_fold_utf8(lowered), tf_text.case_fold_utf8(encoded(characters)))


def test_characters_that_differ_in_case_alone_have_one_lower_case(characters):
    """Unicode folds a few more, which are lower case themselves: final sigma, iota subscript, old forms of Cyrillic."""
    plain = tf_text.normalize_utf8(encoded(characters), "NFKC").numpy()
    folded = tf_text.case_fold_utf8(encoded(characters)).numpy()
    pairs = [
        (character, fold.decode("utf-8"))
        for character, same, fold in zip(characters, plain, folded)
        if same.decode("utf-8") == character != fold.decode("utf-8") and len(fold.decode("utf-8")) == 1
    ]
    pairs = [pair for pair in pairs if pair[0] not in "\u03c2\u0345\u1c80\u1c81\u1c82\u1c83\u1c84\u1c85\u1c86\u1c87\u1c88"]
    assert len(pairs) > 200
    lowered = in_graph(lower)
    firsts, seconds = (list(texts) for texts in zip(*pairs))
    assert_equal(firsts, lowered(encoded(firsts)), lowered(encoded(seconds)))
    assert [text.lower() for text in firsts] == [text.lower() for text in seconds]


def test_words_begin_and_end_where_re2_finds_them(characters):
    """Without U+0345, which Python's `regex` finds in no word when it ignores case."""
    tokenizer = Tokenizer(replace(CLIPSpec(), ftfy=False))
    characters = [character for character in characters if character != "\u0345"]
    groups = [characters[i : i + 4] for i in range(0, len(characters), 4)]  # so many that no token is cut off
    texts = [tokenizer.clean("".join(f"a{character}1{character}'s " for character in group)) for group in groups]
    found = [
        [tuple(len(text[:place].encode("utf-8")) for place in match.span()) for match, _ in tokenizer.kept_words(text)]
        for text in texts
    ]
    _, starts, ends = tf_text.regex_split_with_offsets(encoded(texts), rf"{CLIP_WORDS}|\s+", CLIP_WORDS)
    wanted = [list(zip(*row)) for row in zip(starts.to_list(), ends.to_list())]
    assert not [text for text, ours, theirs in zip(texts, found, wanted) if ours != theirs]
