import pytest
from command_line import made, one_line

from tfsd.cli import COMMANDS, main, with_command
from tfsd.cli.parsing import UsageError


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_names_every_command_and_shows_how_to_begin(argv, capsys):
    if argv:
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 0
    else:
        assert main(argv) == 0
    text = capsys.readouterr().out
    assert all(f"\n    {name}" in text for name in COMMANDS)
    assert 'tfsd "a red star' in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: tfsd {name}" in text
    assert "examples:" in text or name == "models"


WRONG_USAGE = [
    ("generate",),
    ("a", "red", "star"),
    ("modles",),
    ("x", "--bogus"),
    ("x", "--n", "0"),
    ("x", "--n", "10001"),
    ("x", "--n", "two"),
    ("x", "--n", "1.5"),
    ("x", "--n"),
    ("x", "--seed", "1.5"),
    ("x", "--seed", "9223372036854775808"),
    ("x", "--seed", "9" * 10_000),
    ("x", "--index", "-1"),
    ("x", "--steps", "0"),
    ("x", "--steps", "-3"),
    ("x", "--steps", "100000"),
    ("x", "--scale", "nan"),
    ("x", "--scale", "inf"),
    ("x", "--scale", "-1"),
    ("x", "--scale", "much"),
    ("x", "--sampler", "eulr"),
    ("x", "--eta", "2"),
    ("x", "--eta", "0.5", "--sampler", "lms"),
    ("x", "--height", "500"),
    ("x", "--height", "0"),
    ("x", "--width", "33"),
    ("x", "--width", "4096"),
    ("x", "--dtype", "int8"),
    ("x", "--numerics", "torch"),
    ("x", "--batch", "0"),
    ("x", "--columns", "2"),
    ("x", "--grid", "--columns", "0"),
    ("x", "--out", "x.jpg"),
    ("x", "--out", "{steps}.png", "--n", "2"),
    ("x", "--out", "{seed}.png", "--n", "2"),
    ("x", "--prompts", "file"),
    ("--prompts", "missing.txt"),
    ("--prompts", "."),
    ("x" * 100_000,),
    ("x", "--negative", "x" * 100_000),
    ("tokens",),
    ("tokens", "a", "b"),
    ("tokens", "a", "--file", "b"),
    ("tokens", "--file", "missing.jsonl"),
    ("show",),
    ("convert", "one"),
    ("convert", "one", "two", "--dtype", "int8"),
    ("convert", "one", "two", "--kind", "zip"),
    ("download",),
    ("train",),
    ("train", "folder", "--steps", "0"),
    ("train", "folder", "--stage", "third"),
    ("eval", "--n", "0"),
    ("eval", "--model", "toy", "--sheet", "sheet"),
    ("eval", "--model", "toy", "--sheet", "sheet.jpg"),
    ("eval", "--seed", "-1"),
    ("eval", "--scale", "nan"),
    ("eval", "--model", "toy", "--sampler", "eulr"),
    ("bench", "--size", "100"),
    ("bench", "--size", "32"),
    ("bench", "--dtype", "int8"),
    ("bench", "--jit", "maybe"),
]


@pytest.mark.parametrize("argv", WRONG_USAGE, ids=lambda argv: " ".join(argv)[:40].encode("ascii", "replace").decode())
def test_wrong_usage_is_one_line_and_exits_2(argv, place, run):
    argv = (*argv, "--model", "toy") if argv[0] not in COMMANDS or argv == ("generate",) else argv
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert one_line(err), err
    assert len(err) < 1100
    assert made(place) == []


@pytest.mark.parametrize("word", ["genrate", "generaet", "dowload", "downlaod", "tokesn", "token", "modles", "shwo", "trian"])
def test_mistyped_command_is_no_prompt(word):
    with pytest.raises(UsageError, match=f"no command '{word}'. Did you mean"):
        with_command([word])


@pytest.mark.parametrize("word", ["snow", "shower", "sow", "beach", "rain", "brain", "evil", "trainer", "generator", "x", ""])
def test_word_that_only_resembles_a_command_is_a_prompt(word):
    assert with_command(["--debug", word, "--n", "2"]) == ["--debug", "generate", word, "--n", "2"]
