import gzip
import hashlib
import json
import random
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from tfsd.specs import CLIPSpec
from tfsd.text import MAX_PROMPT_BYTES, Tokenizer
from tfsd.text import vocabulary as vocabulary_module
from tfsd.text.vocabulary import BYTES, FIRST_MARK, FIRST_MERGE, VOCABULARY_FILE, byte_alphabet, vocabulary, word_ids

START, END = 49406, 49407
REFERENCE = Path(__file__).parents[1] / "data/tokenizer/cases.jsonl.gz"
WITH_FTFY = Tokenizer()
WITHOUT_FTFY = Tokenizer(replace(CLIPSpec(), ftfy=False))


def load_reference():
    cases = defaultdict(list)
    for line in gzip.decompress(REFERENCE.read_bytes()).decode("utf-8").splitlines():
        case = json.loads(line)
        cases[case["cat"]].append(case)
    return dict(cases)


CASES = load_reference()
ALL = [case for cases in CASES.values() for case in cases]


def wrong(cases, found, expected):
    return [case["text"] for case in cases if found(case) != expected(case)]


def test_all_reference_cases_are_there():
    assert len(ALL) == 1000
    assert sum("ids_without_ftfy" in case for case in ALL) == 123


@pytest.mark.parametrize("kind", sorted(CASES))
def test_ids_equal_openai_clip(kind):
    assert not wrong(CASES[kind], lambda case: WITH_FTFY.encode(case["text"]), lambda case: case["ids"])


@pytest.mark.parametrize("kind", sorted(CASES))
def test_ids_without_ftfy_equal_kerascv(kind):
    expected = lambda case: case.get("ids_without_ftfy", case["ids"])  # noqa: E731
    assert not wrong(CASES[kind], lambda case: WITHOUT_FTFY.encode(case["text"]), expected)


@pytest.mark.filterwarnings("ignore::tfsd.text.PromptTruncationWarning")
def test_padded_and_truncated_tokens_equal_openai_clip():
    tokens = WITH_FTFY([case["text"] for case in ALL])
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, [case["ids77"] for case in ALL])


def test_decoded_ids_encode_to_themselves():
    assert not wrong(ALL, lambda case: WITHOUT_FTFY.encode(WITHOUT_FTFY.decode(case["ids"][1:-1])), lambda case: case["ids"])


def test_endings_are_found_in_any_case_of_their_letters():
    """CLIP's pattern ignores case: a long s, which has no lower case, still makes the ending 's."""
    assert WITHOUT_FTFY.encode("'\u017fa")[1:-1] == [*word_ids("'\u017f"), *word_ids("a")]


def test_empty_prompt_is_kerascvs_unconditional_prompt():
    assert WITHOUT_FTFY("").tolist() == [[START] + [END] * 76]


def test_packaged_vocabulary_is_the_published_file():
    packed = resources.files("tfsd").joinpath("assets", VOCABULARY_FILE).read_bytes()
    assert hashlib.sha256(packed).hexdigest() == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"


def test_another_vocabulary_file_is_refused(monkeypatch):
    monkeypatch.setattr(vocabulary_module, "VOCABULARY_SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="sha256 0000"):
        vocabulary.__wrapped__()


def test_vocabulary_has_one_id_per_piece():
    table = vocabulary()
    assert len(table.pieces) == len(set(zip(table.pieces, table.ends_word))) == FIRST_MARK == START
    assert [table.pieces[i] for i in table.byte_ids] == [bytes([byte]) for byte in range(BYTES)]
    assert len(byte_alphabet()) == BYTES


def test_every_merge_uses_pieces_of_earlier_merges_only():
    """What makes merging one place at a time equal to merging all places of a pair at once."""
    assert all(max(pair) < FIRST_MERGE + rank for pair, rank in vocabulary().ranks.items())


def test_tokens_never_stand_for_more_than_32_bytes():
    assert max(map(len, vocabulary().pieces)) == 32  # the reason for MAX_PROMPT_BYTES


def merge_by_definition(word):
    """Byte-pair encoding as defined: find the pair of lowest rank, merge all its places from the left, repeat."""
    table = vocabulary()
    ids = [table.byte_ids[byte] for byte in word.encode("utf-8")]
    ids[-1] += BYTES
    while ranked := [pair for pair in zip(ids, ids[1:]) if pair in table.ranks]:
        best = min(ranked, key=table.ranks.get)
        merged, i = [], 0
        while i < len(ids):
            found = tuple(ids[i : i + 2]) == best
            merged.append(FIRST_MERGE + table.ranks[best] if found else ids[i])
            i += 2 if found else 1
        ids = merged
    return tuple(ids)


@pytest.mark.parametrize("letters", ["a", "ab", "aeinrst", "abcdefghijklmnopqrstuvwxyz", "!?.-", "äß猫😀", "lo"])
def test_fast_merging_equals_the_definition(letters):
    source = random.Random(letters)
    words = ["".join(source.choices(letters, k=source.randint(1, 200))) for _ in range(40)]
    assert [word_ids(word) for word in words] == [merge_by_definition(word) for word in words]


@pytest.mark.parametrize("unit", ["a", "qzxjvkw", "é", "Ã©", "’", "&amp;", "\u0301", "\n", "cat dog "])
def test_longest_prompts_are_encoded_whole(unit):
    prompt = unit * (MAX_PROMPT_BYTES // len(unit.encode("utf-8")))
    split = WITHOUT_FTFY.split(prompt)
    text = "".join(WITHOUT_FTFY.decode([piece.id for piece in [*split.kept, *split.cut]]).split())
    assert text == "".join((split.kept_text + split.cut_text).split())
    assert len(WITH_FTFY.encode(prompt)) <= MAX_PROMPT_BYTES + 2


@pytest.mark.parametrize("length", [2, 3, 12, 77])
def test_kept_and_cut_text_make_up_the_prompt(length):
    tokenizer = Tokenizer(replace(CLIPSpec(), length=length))
    for case in ALL[::7]:
        split = tokenizer.split(case["text"])
        assert split.kept_text + split.cut_text == tokenizer.clean(case["text"])
        assert [piece.id for piece in [*split.kept, *split.cut]] == case["ids"][1:-1]
        assert bool(split.cut) == bool(split.cut_text)


def test_import_loads_neither_tensorflow_nor_the_vocabulary():
    program = (
        "import sys, tfsd.text; from tfsd.text.vocabulary import vocabulary; tfsd.text.Tokenizer();"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules; assert not vocabulary.cache_info().currsize;"
        "tfsd.text.Tokenizer()('a cat'); assert vocabulary.cache_info().currsize"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
