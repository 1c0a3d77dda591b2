import gc
import gzip
import html.entities
import json
import random
import shutil
import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path

import ftfy
import numpy as np
import pytest
import tensorflow as tf

from tfsd.specs import CLIPSpec
from tfsd.text import Tokenizer, graph
from tfsd.text.bpe import clean
from tfsd.text.characters import composition
from tfsd.text.cleaning import Cleaner
from tfsd.text.graph import MAX_GRAPH_PROMPT_BYTES, GraphTokenizer

START, END = 49406, 49407
REFERENCE = Path(__file__).parents[1] / "data/tokenizer/cases.jsonl.gz"
CASES = [json.loads(line) for line in gzip.decompress(REFERENCE.read_bytes()).decode("utf-8").splitlines()]
TEXTS = [case["text"] for case in CASES]
WITH_FTFY, WITHOUT_FTFY = CLIPSpec(), replace(CLIPSpec(), ftfy=False)
CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
STRINGS = [tf.TensorSpec([None], tf.string)]


def compiled(module):
    return tf.function(module.__call__, input_signature=STRINGS)


class Served(tf.Module):
    """A model that holds nothing but the tokenizer."""

    def __init__(self, folder):
        super().__init__()
        self.tokenizer = GraphTokenizer(WITHOUT_FTFY, folder=folder)
        self.tokenize = tf.function(lambda prompt: self.tokenizer(prompt)._asdict(), input_signature=STRINGS)


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return tmp_path_factory.mktemp("assets")


@pytest.fixture(scope="module")
def served(assets):
    return Served(assets)


@pytest.fixture(scope="module")
def tokenize(served):
    return {WITHOUT_FTFY: served.tokenize, WITH_FTFY: compiled(GraphTokenizer(WITH_FTFY))}


@pytest.fixture(scope="module")
def cleaned():
    return {repair: compiled(Cleaner(repair=repair)) for repair in (False, True)}


def run(function, texts):
    """Returns tokens and numbers of cut-off ones for texts or bytes."""
    texts = [text.encode("utf-8") if isinstance(text, str) else text for text in texts]
    found = function(tf.constant(texts, tf.string, [len(texts)]))
    found = found if isinstance(found, dict) else found._asdict()
    return found["tokens"].numpy(), found["truncated"].numpy()


def expected(spec, texts):
    tokenizer = Tokenizer(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tokenizer(texts), [max(len(tokenizer.encode(text)) - spec.length, 0) for text in texts]


def assert_same(function, spec, texts):
    for found, wanted in zip(run(function, texts), expected(spec, texts)):
        np.testing.assert_array_equal(found, wanted)


def assert_cleaned_alike(cleaned, texts, repair):
    """Compares with Python, where `repair` means all of ftfy but its guesses at encodings.

    U+0345 is a space in the graph: see the test of the words that it parts.
    """
    found = [text.decode("utf-8") for text in cleaned[repair](tf.constant([text.encode("utf-8") for text in texts])).numpy()]
    repaired = [ftfy.fix_text(text, fix_encoding=False) if repair else text for text in texts]
    wanted = [clean(text, repair=False).replace("\u0345", " ").split() for text in repaired]
    different = [text for text, now, before in zip(texts, found, wanted) if now.split() != before]
    assert not different


def test_reference_tokens_without_ftfy(tokenize):
    tokens, truncated = run(tokenize[WITHOUT_FTFY], TEXTS)
    ids = [case.get("ids_without_ftfy", case["ids"]) for case in CASES]
    np.testing.assert_array_equal(truncated, [max(len(row) - 77, 0) for row in ids])
    np.testing.assert_array_equal(tokens, [[*row[:76], END, *[END] * 77][:77] for row in ids])
    assert sum(truncated > 0) > 20


def test_reference_tokens_with_ftfy_but_for_wrong_decodings(tokenize):
    certain = [case for case in CASES if ftfy.fix_text(case["text"]) == ftfy.fix_text(case["text"], fix_encoding=False)]
    tokens, truncated = run(tokenize[WITH_FTFY], [case["text"] for case in certain])
    np.testing.assert_array_equal(tokens, [case["ids77"] for case in certain])
    np.testing.assert_array_equal(truncated, [max(len(case["ids"]) - 77, 0) for case in certain])
    assert {case["cat"] for case in CASES if case not in certain} == {"mojibake"}
    assert len(certain) == 965
    assert sum("ids_without_ftfy" in case for case in certain) > 80


def test_the_documented_exceptions_are_exceptions(tokenize):
    for text in ("cafÃ©", "itâ€™s"):
        assert text in graph.NOT_REPAIRED
        assert not np.array_equal(run(tokenize[WITH_FTFY], [text])[0], expected(WITH_FTFY, [text])[0])
        np.testing.assert_array_equal(run(tokenize[WITH_FTFY], [ftfy.fix_encoding(text)])[0], expected(WITH_FTFY, [text])[0])


MARKS = [
    "<|endoftext|>",
    "a <|startoftext|>b",
    "A<|EndOfText|>cat",
    "!<|endoftext|>",
    "<|\u017ftartoftext|>",
    "? <|endoftext|>'s",
]


@pytest.mark.parametrize("length", [2, 3, 8])
def test_marks_padding_and_length_follow_the_spec(length):
    spec = replace(WITHOUT_FTFY, start_token=998, end_token=999, pad_token=0, length=length)
    texts = [*MARKS, "", " ", "a'\u017fa", "a red cat on a mat in a hat", "don't", "1920x1080", "'S 's 't're", "\x1c", "a\x00b"]
    assert_same(compiled(GraphTokenizer(spec)), spec, texts)


def test_a_letter_that_is_in_no_word_parts_words(tokenize):
    assert_same(tokenize[WITHOUT_FTFY], WITHOUT_FTFY, ["a\u0345b", "!\u0345!", "\u0345", "Α\u0345Σ", "<|endoftext|\u0345>"])


@pytest.mark.parametrize("spec", [WITH_FTFY, WITHOUT_FTFY], ids=["ftfy", "no ftfy"])
def test_no_prompts_and_empty_prompts(tokenize, spec):
    assert run(tokenize[spec], [])[0].shape == (0, 77)
    assert run(tokenize[spec], [])[1].shape == (0,)
    assert run(tokenize[spec], ["", " \n"])[0].tolist() == [[START] + [END] * 76] * 2


def test_a_prompts_tokens_do_not_depend_on_its_batch(tokenize):
    together = run(tokenize[WITH_FTFY], TEXTS[::50])[0]
    for row, text in zip(together, TEXTS[::50]):
        np.testing.assert_array_equal(run(tokenize[WITH_FTFY], [text])[0], [row])


def test_what_is_no_utf_8_counts_as_replacement_characters(tokenize):
    texts = [b"a \xff cat", b"\xc3", b"caf\xe9 au lait", b"\xf0\x9f\x98"]
    assert_same(lambda _: tokenize[WITHOUT_FTFY](tf.constant(texts)), WITHOUT_FTFY, [t.decode("utf-8", "replace") for t in texts])


def test_words_of_any_length_are_merged_alike(tokenize):
    source = random.Random(0)
    words = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz"[:n], k=source.randint(1, 90))) for n in (1, 2, 5, 26) * 100]
    assert_same(tokenize[WITHOUT_FTFY], WITHOUT_FTFY, words)


@pytest.mark.parametrize("unit", ["a", "qzxjvkw", "é", "cat ", "😀", "&", "e\u0301", "\u0301"])
def test_longest_prompts_are_read_whole(tokenize, unit):
    assert_same(tokenize[WITHOUT_FTFY], WITHOUT_FTFY, [unit * (MAX_GRAPH_PROMPT_BYTES // len(unit.encode("utf-8")))] * 2)


def test_every_prompt_that_is_read_whole_may_be_sent():
    assert MAX_GRAPH_PROMPT_BYTES >= (WITH_FTFY.length - 2) * (32 + 1)  # bytes of the longest piece, and a space


@pytest.mark.parametrize("repair", [False, True])
def test_characters_are_cleaned_as_in_python(cleaned, repair):
    """A sample of all; each between letters, as a word and at both ends, where case and combining marks matter."""
    letters = [*CHARACTERS[:0x600], *random.Random(0).sample(CHARACTERS[0x600:], 4000), *map(chr, range(0xFF00, 0xFFF0))]
    assert_cleaned_alike(cleaned, [f"{letter}aA{letter}Σ e{letter} {letter}Σ{letter}" for letter in letters], repair)


def test_no_base_takes_a_mark_that_an_earlier_mark_has_to_wait_for():
    """What spares `compose` from remembering which marks a base has looked at."""
    tables = composition()
    pairs = {divmod(pair, 2**21): code for pair, code in zip(tables.pairs.tolist(), tables.composed.tolist())}
    seconds = {first: [second for one, second in pairs if one == first] for first in {first for first, _ in pairs}}
    for (base, later), code in pairs.items():
        for earlier in seconds.get(code, ()):
            classes = [unicodedata.combining(chr(mark)) for mark in (earlier, later)]
            assert (base, earlier) in pairs or not 0 < classes[0] < classes[1]
    assert not set(seconds) & {second for _, second in pairs}  # so that bases in a row are joined in any order


POOLS = {
    "sigmas": "aAΣσς.\u0301'\u00adʰ \n1\u0345",
    "marks": "eoaus\u0301\u0323\u0327\u0308\u0304\u0307\u0345\u1100\u1161\u11a8\uac00\u09c7\u09be\u212bα\u0f71\u0f72",
    "references": "&#xX0123456789abcdefF;amplgtnotin <\n",
    "ftfy": "\x1b[0m;１［ｍfiﬁ“”’‘ŉǄ\r\n\u2028\ufeff\x85\x92ｶﾞ＆amp<",
    "spaces": "a \t\x0b\x1c\x1f\x85\u00a0\u200b\u2003\u3000\x00",
    "any": "".join(random.Random(1).choices(CHARACTERS, k=2000)),
}


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize("pool", POOLS)
def test_random_text_is_cleaned_as_in_python(cleaned, pool, repair):
    source = random.Random(pool)
    assert_cleaned_alike(cleaned, ["".join(source.choices(POOLS[pool], k=source.randint(0, 30))) for _ in range(500)], repair)


@pytest.mark.parametrize("repair", [False, True])
def test_every_html_reference_is_read(cleaned, repair):
    names = [name for key in html.entities.html5 for name in (key, key.upper(), key + "x", key[:-1])]
    numbers = [*range(0x180), 0xD800, 0xDFFF, 0xFFFE, 0x1FFFF, 0x10FFFF, 0x110000, 10**8, 2**31, 2**32, 2**64, 10**40]
    forms = ("#{0};", "#{0}", "#x{0:x};", "#X{0:X}z", "#000000000{0};", "#x000000000{0:x};")
    references = [*names, *(form.format(number) for form in forms for number in numbers)]
    assert_cleaned_alike(cleaned, ["&" + reference for reference in references], repair)
    nested = [f"&amp;{reference} &{reference}" for reference in references[::5]]
    assert_cleaned_alike(cleaned, [*nested, "&" + "amp;" * 9 + "lt;", "a&", "&&lt;&", "&amp\n&rsquo;<\n&rsquo;"], repair)


def definition(served):
    return served.tokenize.get_concrete_function().graph.as_graph_def()


def test_lower_case_does_not_depend_on_the_machines_language(served):
    nodes = [node for function in definition(served).library.function for node in function.node_def]
    lowering = [node for node in nodes if node.op in ("StringLower", "StringUpper")]
    assert lowering
    assert all(not node.attr["encoding"].s for node in lowering)  # ASCII alone: with an encoding it is ICU's, of the locale


def test_the_graph_has_operations_of_tensorflow_alone(served):
    """A server or a program loads it without any other package, such as TensorFlow Text."""
    graph_def = definition(served)
    called = {function.signature.name for function in graph_def.library.function}
    nodes = [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]
    assert {node.op for node in nodes} - called <= set(dir(tf.raw_ops))


@pytest.fixture(scope="module")
def saved(served, assets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "1"
    tf.saved_model.save(served, str(folder), signatures={"tokenize": served.tokenize})
    shutil.rmtree(assets)  # a SavedModel needs nothing but itself
    return folder


def test_the_vocabulary_is_an_asset(saved):
    lines = (saved / "assets" / graph.PAIRS_FILE).read_text().splitlines()
    assert len(lines) == 48894
    assert int(lines[0]) == ord("i") - 33 << 16 | ord("n") - 33  # "i n", the first merge of the published file


def test_without_a_folder_the_asset_goes_with_the_tokenizer():
    tokenizer = GraphTokenizer(WITHOUT_FTFY)
    path = Path(tokenizer.asset.asset_path.numpy().decode())
    assert path.name == graph.PAIRS_FILE and path.exists()
    del tokenizer
    gc.collect()
    assert not path.parent.exists()


def test_a_saved_model_gives_the_same_tokens(saved, tokenize):
    loaded = tf.saved_model.load(str(saved))
    for found, wanted in zip(
        run(lambda texts: loaded.signatures["tokenize"](prompt=texts), TEXTS), expected(WITHOUT_FTFY, TEXTS)
    ):
        np.testing.assert_array_equal(found, wanted)


def test_a_session_over_the_signature_gives_the_same_tokens(saved, tmp_path):
    """The way TensorFlow Serving loads models, from another place than the one they were saved to."""
    moved = shutil.copytree(saved, tmp_path / "2")
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        model = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(moved))
        signature = model.signature_def["tokenize"]
        names = [signature.outputs[name].name for name in ("tokens", "truncated")]
        prompts = [text.encode("utf-8") for text in TEXTS]
        tokens, truncated = session.run(names, {signature.inputs["prompt"].name: prompts})
    wanted = expected(WITHOUT_FTFY, TEXTS)
    np.testing.assert_array_equal(tokens, wanted[0])
    np.testing.assert_array_equal(truncated, wanted[1])
