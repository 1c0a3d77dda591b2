import warnings
from dataclasses import replace

import numpy as np
import pytest

from tfsd.specs import CLIPSpec
from tfsd.text import MAX_PROMPT_BYTES, PromptTruncationWarning, Tokenizer
from tfsd.text.vocabulary import vocabulary

START, END = 49406, 49407
LONG = "a red cat, " * 30  # 120 ids between the marks
WITH_FTFY = Tokenizer()
WITHOUT_FTFY = Tokenizer(replace(CLIPSpec(), ftfy=False))


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


@pytest.mark.parametrize("tokenizer", [WITH_FTFY, WITHOUT_FTFY], ids=["with ftfy", "without"])
def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"prompt must be Unicode text; got half a surrogate pair, U\+D800"):
        tokenizer.encode("a \ud800 cat")
    with pytest.raises(ValueError, match=r"negative_prompt must be Unicode text; got half a surrogate pair, U\+DC80"):
        tokenizer("\udc80", name="negative_prompt")


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


def test_decode_writes_marks_and_spaces():
    assert WITH_FTFY.decode(np.array([START, 320, 2368, END])) == "<|startoftext|>a cat <|endoftext|>"


@pytest.mark.parametrize("ids, error", [([-1], ValueError), ([49408], ValueError), ([1.5], TypeError), (["1"], TypeError)])
def test_decode_refuses_what_is_no_id(ids, error):
    with pytest.raises(error):
        WITH_FTFY.decode(ids)
