import gzip
import json
from pathlib import Path

import pytest
from command_line import LONG, one_line

DATA = Path(__file__).parents[1] / "data"


def test_tokens_shows_what_is_read_and_what_is_cut_off(run):
    status, out, _ = run("tokens", "a red star")
    assert status == 0
    assert out.split("\n")[:5] == [" 49406  start", "   320  a", "   736  red", "  1565  star", " 49407  end"]
    assert "5 tokens, 77 are read; nothing is cut off" in out
    out = run("tokens", LONG)[1]
    assert out.count("(cut off)") == 45 and "122 tokens, 77 are read; cut off: , a red star" in out


def test_tokens_tells_which_words_a_model_never_learned(place, run):
    out = run("tokens", "a red zeppelin", "--model", "toy")[1]
    assert "zeppelin   (the model never learned it)" in out and out.count("never learned it") == 1


@pytest.mark.parametrize("options, field", [((), "ids"), (("--no-ftfy",), "ids_without_ftfy")])
def test_tokens_of_a_file_are_those_of_openai_clip(options, field, place, run):
    cases = [json.loads(line) for line in gzip.decompress((DATA / "tokenizer/cases.jsonl.gz").read_bytes()).splitlines()]
    Path("p.jsonl").write_text("".join(json.dumps({"prompt": case["text"]}) + "\n" for case in cases))
    status, out, _ = run("tokens", "--file", "p.jsonl", *options)
    assert status == 0
    assert [json.loads(line) for line in out.splitlines()] == [case.get(field, case["ids"]) for case in cases]


@pytest.mark.parametrize(
    "line",
    [b"a red star", b'"a red star"', b'{"text": "a"}', b'{"prompt": 1}', b"\xff", b"[" * 10**5, b" " * 2**21],
    ids=["text", "string", "field", "number", "bytes", "deep", "long"],
)
def test_bad_line_is_named(line, place, run):
    Path("p.jsonl").write_bytes(b'{"prompt": "a"}\n' + line + b"\n")
    status, out, err = run("tokens", "--file", "p.jsonl")
    assert (status, out) == (2, "[49406, 320, 49407]\n")
    assert one_line(err) and "p.jsonl, line 2: " in err
