import gzip
import hashlib
import json
import random
import subprocess
import sys
import warnings
from collections import defaultdict
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from tfsd.specs import CLIPSpec
from tfsd.text import MAX_PROMPT_BYTES, PromptTruncationWarning, Tokenizer
from tfsd.text import vocabulary as vocabulary_module
from tfsd.text.vocabulary import BYTES, FIRST_MARK, FIRST_MERGE, VOCABULARY_FILE, byte_alphabet, vocabulary, word_ids

START, END = 49406, 49407
REFERENCE = Path(__file__).parents[1] / "data/tokenizer/cases.jsonl.gz"
LONG = "a red cat, " * 30  # 120 ids between the marks
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


@pytest.mark.parametrize("prompt", ["a" * 10_000_000, "é" * (MAX_PROMPT_BYTES // 2 + 1)])
def test_prompts_over_the_byte_limit_are_refused(prompt):
    with pytest.raises(ValueError, match=f"^prompt must be at most {MAX_PROMPT_BYTES} bytes") as refusal:
        WITH_FTFY(prompt)
    assert len(str(refusal.value)) < 200


def test_truncation_keeps_75_ids_between_the_marks():
    ids = WITH_FTFY.encode(LONG)
    with pytest.warns(PromptTruncationWarning):
        tokens = WITH_FTFY(LONG)[0].tolist()
    assert tokens == [*ids[:76], END]
    assert len(ids) == 122


def test_truncation_warning_shows_the_text_cut_off():
    with pytest.warns(
        PromptTruncationWarning, match=r"prompt\[1\] has 79 tokens and only 77 are read; cut off: 'zebra blue'"
    ) as found:
        WITH_FTFY(["short", "cat " * 75 + "Zebra  Blue"])
    assert found[0].filename == __file__


def test_a_prompt_of_exactly_77_tokens_is_whole():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert WITH_FTFY("cat " * 75, on_long="error")[0].tolist() == WITH_FTFY.encode("cat " * 75)


def test_long_prompt_is_an_error_if_asked():
    with pytest.raises(ValueError, match=r"Prompt is too long \(should be <= 77 tokens\): prompt has 78.*'zebra'"):
        WITH_FTFY("cat " * 75 + "zebra", on_long="error")


def test_very_long_cut_off_text_is_shortened_in_messages():
    with pytest.raises(ValueError, match="more characters") as refusal:
        WITH_FTFY("zebra " * 10_000, on_long="error")
    assert len(str(refusal.value)) < 600


def test_padding_follows_the_spec():
    tokenizer = Tokenizer(replace(CLIPSpec(), pad_token=0, length=8))
    assert tokenizer(["a cat", ""]).tolist() == [[START, 320, 2368, END, 0, 0, 0, 0], [START, END, 0, 0, 0, 0, 0, 0]]


def test_marks_follow_the_spec():
    tokenizer = Tokenizer(replace(CLIPSpec(), start_token=998, end_token=999, pad_token=999, length=6))
    assert tokenizer("a <|endoftext|>").tolist() == [[998, 320, 999, 999, 999, 999]]


def test_pad_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="ids must be at most 77; got 78"):
        WITH_FTFY.pad([1] * 78)


def test_no_prompts_give_no_rows():
    assert WITH_FTFY([]).shape == (0, 77)


@pytest.mark.parametrize("prompts", [("a cat", "a dog"), np.array(["a cat", "a dog"]), np.array(["a cat", "a dog"], object)])
def test_prompts_may_come_in_any_sequence(prompts):
    assert WITH_FTFY(prompts).tolist() == WITH_FTFY(["a cat", "a dog"]).tolist()


@pytest.mark.parametrize("prompt", [None, 3, b"a cat", {"a": "cat"}, {"a cat"}, np.array("a cat")])
def test_prompts_of_another_type_are_refused(prompt):
    with pytest.raises(TypeError, match="^negative_prompt must be a str or a list of str; got "):
        WITH_FTFY(prompt, name="negative_prompt")


def test_a_wrong_item_is_named():
    with pytest.raises(TypeError, match=r"^prompt\[1\] must be a str; got NoneType\."):
        WITH_FTFY(["a cat", None])
    with pytest.raises(TypeError, match="^prompt must be a str; got bytes"):
        WITH_FTFY.encode(b"a cat")


def test_unknown_on_long_is_refused():
    with pytest.raises(ValueError, match='on_long must be "truncate" or "error"; got \'raise\''):
        WITH_FTFY("a", on_long="raise")


def test_half_a_surrogate_pair_is_refused_or_repaired():
    with pytest.raises(ValueError, match=r"prompt must be Unicode text; got half a surrogate pair, U\+D800"):
        WITHOUT_FTFY.encode("a \ud800 cat")
    assert WITH_FTFY.encode("a \ud800 cat") == WITH_FTFY.encode("a \ufffd cat")


@pytest.mark.parametrize("digits, letter", [("9" * 20_000, "\ufffd"), ("0" * 20_000, "\ufffd"), ("0" * 20_000 + "97", "a")])
def test_character_references_of_any_length_are_read(digits, letter):
    for ampersand in ("&", "&amp;"):
        assert WITHOUT_FTFY.encode(f"{ampersand}#{digits}; cat") == WITHOUT_FTFY.encode(f"{letter} cat")


def test_split_tells_pieces_and_texts():
    split = Tokenizer(replace(CLIPSpec(), length=6)).split("A  Worldwidewebs, cat")
    assert [piece.text for piece in split.kept] == ["a", "world", "wide", "webs"]
    assert [piece.ends_word for piece in split.kept] == [True, False, False, True]
    assert [(piece.id, piece.text) for piece in split.cut] == [(267, ","), (2368, "cat")]
    assert (split.kept_text, split.cut_text) == ("a worldwidewebs", ", cat")


def test_cut_inside_a_word_is_at_the_right_letter():
    split = Tokenizer(replace(CLIPSpec(), length=4)).split("a worldwidewebs")
    assert (split.kept_text, split.cut_text) == ("a world", "widewebs")


def test_a_letter_cut_in_two_counts_as_cut_off():
    tokenizer = Tokenizer(replace(CLIPSpec(), length=4))
    split = tokenizer.split("aa蜻")
    assert b"".join(vocabulary().pieces[piece.id] for piece in split.kept) == "aa蜻".encode()[:3]  # else the case is no case
    assert (split.kept_text, split.cut_text) == ("aa", "蜻")
    assert "\\x" in split.kept[-1].text


@pytest.mark.parametrize("length", [2, 3, 12, 77])
def test_kept_and_cut_text_make_up_the_prompt(length):
    tokenizer = Tokenizer(replace(CLIPSpec(), length=length))
    for case in ALL[::7]:
        split = tokenizer.split(case["text"])
        assert split.kept_text + split.cut_text == tokenizer.clean(case["text"])
        assert [piece.id for piece in [*split.kept, *split.cut]] == case["ids"][1:-1]
        assert bool(split.cut) == bool(split.cut_text)


def test_decode_writes_marks_and_spaces():
    assert WITH_FTFY.decode(np.array([START, 320, 2368, END])) == "<|startoftext|>a cat <|endoftext|>"


@pytest.mark.parametrize("ids, error", [([-1], ValueError), ([49408], ValueError), ([1.5], TypeError), (["1"], TypeError)])
def test_decode_refuses_what_is_no_id(ids, error):
    with pytest.raises(error):
        WITH_FTFY.decode(ids)


def test_added_tokens_get_the_next_ids():
    tokenizer = Tokenizer()
    assert tokenizer.add_tokens("<my-cat>") == 1
    assert tokenizer.add_tokens(["<my-cat>", "cat", "<dög>"]) == 1  # the first two are known
    assert tokenizer.encode("a <my-cat>, <dög>")[1:-1] == [320, 49408, 267, 49409]
    assert tokenizer.decode([49408, 320]) == "<my-cat>a "
    assert tokenizer.split("<my-cat>").kept[0].text == "<my-cat>"
    assert tokenizer.vocabulary_size == 49410


def test_added_tokens_stay_with_their_tokenizer():
    Tokenizer().add_tokens("<my-cat>")
    assert START <= max(Tokenizer().encode("<my-cat>")) < 49408


def test_added_tokens_are_found_in_any_case():
    tokenizer = Tokenizer()
    tokenizer.add_tokens("<My-CAT>")
    assert tokenizer.encode("<my-cat> <MY-cat>")[1:-1] == [49408, 49408]


def test_of_overlapping_added_tokens_the_first_wins():
    tokenizer = Tokenizer()
    tokenizer.add_tokens(["sks", "sks-dog"])
    assert tokenizer.encode("sks-dog")[1:3] == [49408, 268]


@pytest.mark.parametrize("token, error", [("", ValueError), ("two words", ValueError), (3, TypeError)])
def test_a_bad_token_adds_none(token, error):
    tokenizer = Tokenizer()
    with pytest.raises(error, match=r"tokens\[1\] must be "):
        tokenizer.add_tokens(["<good>", token])
    assert tokenizer.vocabulary_size == 49408
    with pytest.raises(TypeError, match="^tokens must be a str or a list of str; got int"):
        tokenizer.add_tokens(3)


def test_import_loads_neither_tensorflow_nor_the_vocabulary():
    program = (
        "import sys, tfsd.text; from tfsd.text.vocabulary import vocabulary; tfsd.text.Tokenizer();"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules; assert not vocabulary.cache_info().currsize;"
        "tfsd.text.Tokenizer()('a cat'); assert vocabulary.cache_info().currsize"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
