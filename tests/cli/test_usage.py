import argparse
import json
import shlex
import subprocess
import sys

import pytest
from command_line import ROOT, made, one_line

from tfsd.cli import COMMANDS, _parsed, build_parser, main, with_command
from tfsd.cli.parsing import UsageError, with_flags
from tfsd.cli.words import USUAL


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
    assert "examples:" in text


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
    ("x", "--out", "x.gif"),
    ("x", "--out", "-", "--n", "2"),
    ("x", "--size", "64x"),
    ("x", "--size", "64", "--height", "64"),
    ("", "--seed", "1"),
    (" ",),
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


@pytest.mark.parametrize(
    "word",
    [
        "snow",
        "cat",
        "lighthouse",
        "star",
        "red",
        "boat",
        "house",
        "night",
        "shower",
        "sow",
        "beach",
        "rain",
        "brain",
        "evil",
        "trainer",
        "generator",
        "x",
        "",
    ],
)
def test_word_that_only_resembles_a_command_is_a_prompt(word):
    assert with_command(["--debug", word, "--n", "2"]) == ["--debug", "generate", word, "--n", "2"]


@pytest.mark.parametrize("word", [*USUAL, "Models", "SERVE", "hlep", "verison", "expory", "sreve"])
def test_word_that_other_programs_have_as_a_command_asks_back(word, run):
    for argv in ([word], [word, "models"], ["--seed", "3", word]):
        status, out, err = run(*argv)
        assert (status, out) == (2, "") and one_line(err)
        assert f"there is no command '{word}'" in err and f"To draw this word: tfsd -- {word}" in err


@pytest.mark.parametrize(
    "word, command",
    [("list", "models"), ("draw", "generate"), ("Paint", "generate"), ("sreve", "serve"), ("run", "generate"), ("hlep", "help")],
)
def test_mistaken_command_names_the_one_that_was_meant(word, command):
    with pytest.raises(UsageError, match=f"Did you mean '{command}'"):
        with_command([word, "models"])


def test_several_words_without_quotes_name_a_command_that_is_near(run):
    status, _, err = run("trein", "runs/tiny")
    assert status == 2 and "did you mean 'train'?" in err and 'tfsd "trein runs/tiny"' in err


@pytest.mark.parametrize("prompts", [("list", "--n", "2"), ("a red star", "--n", "2"), ("--n", "2", "list")])
def test_options_after_two_dashes_are_an_error_that_says_where_they_go(prompts, run):
    status, _, err = run("--", *prompts)
    assert status == 2 and "'--n'; put options before it: tfsd --n 2 -- list" in err


@pytest.mark.parametrize("argv", [["--", "help"], ["generate", "list"], ["--seed", "3", "--", "version"], ["--seed", "1", "cat"]])
def test_word_can_be_drawn_all_the_same(argv):
    assert _parsed(argv).prompt == [argv[-1]]


def test_help_and_version_are_commands(capsys):
    for argv, text in ((["help"], "usage: tfsd [-h]"), (["help", "serve"], "usage: tfsd serve"), (["version"], "tfsd 0.")):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 0 and capsys.readouterr().out.startswith(text)
    assert with_command(["help", "bench", "device"]) == ["bench", "device", "--help"]
    assert with_command(["help", "help"]) == with_command(["help", "version"]) == ["--help"]
    assert main(["help", "srve"]) == 2 and "Did you mean 'serve'?" in capsys.readouterr().err


def test_options_with_several_values_take_commas_too():
    line = ["export", "saved_model", "--out", "x", "--batch-sizes"]
    for given in (["1,2,4"], ["1", "2,4"], ["1,", "2,", "4"]):
        assert _parsed([*line, *given]).batch_sizes == [1, 2, 4]
    assert _parsed(["bench", "--dtype", "float32,float16"]).dtype == ["float32", "float16"]


def test_error_about_both_sides_names_the_options_that_set_them():
    text = "height and width must be one of 32 x 32; got [[100 96]]"
    sides, size = {"height": "--height", "width": "--width"}, {"height": "height of --size", "width": "width of --size"}
    assert with_flags(text, sides) == "--height and --width must be one of 32 x 32; got [[100 96]]"
    assert with_flags(text, size) == "--size must be one of 32 x 32; got [[100 96]]"


ALIASES = [
    ("-n 3 -s 7 -o x.png -q", "--n 3 --seed 7 --out x.png --quiet"),
    ("--negative-prompt b --num-steps 4", "--negative b --steps 4"),
    ("--guidance 2", "--scale 2"),
    ("--guidance-scale 2 --output x.png", "--scale 2 --out x.png"),
]


@pytest.mark.parametrize("theirs, ours", ALIASES)
def test_usual_names_of_options_are_known(theirs, ours):
    found, wanted = (vars(_parsed(["a cat", *argv.split()])) for argv in (theirs, ours))
    assert {name: found[name] for name in found if name != "flags"} == {name: wanted[name] for name in wanted if name != "flags"}


@pytest.mark.parametrize(
    "argv, message",
    [
        (["x", "--stepz", "3"], "unknown option --stepz. Did you mean --steps? See tfsd generate --help."),
        (["x", "--num-inference-steps", "3"], "Did you mean --steps? See tfsd generate --help."),
        (["x", "--cfg-scale=3"], "unknown option --cfg-scale. Did you mean --scale?"),
        (["x", "--zzzzzz"], "unknown option --zzzzzz. See tfsd generate --help."),
        (["serve", "models", "--port", "1"], "unknown option --port. Did you mean --grpc-port or --rest-port? See tfsd serve"),
        (["load-test", "models", "--port", "1"], "unknown option --port."),
        (
            ["export", "saved_model", "--out", "x", "--batch-sizes", "1,x"],
            "--batch-sizes must be a whole number from 1 to 64; got 'x'.",
        ),
        (["bench", "device", "--full-size", "--sizes", "256,8"], "--sizes must be a whole number from 64 to 2048; got '8'."),
        (["x", "--out", "{n.png", "-n", "2"], "--out must have each { closed by a }, as in {n}; got '{n.png'."),
        (["x", "-o", "x{seed}}.png"], "-o must have each { closed by a }"),
        (["serve", "models", "--grpc-prot", "1"], "Did you mean --grpc-port? See tfsd serve --help."),
        (["bench", "device", "--rums", "1"], "Did you mean --runs? See tfsd bench device --help."),
        (["models", "extra"], "unexpected argument 'extra'. See tfsd models --help."),
        (["x", "-n", "0"], "tfsd: -n must be a whole number from 1 to 10000; got '0'."),
        (["x", "--n=0"], "tfsd: --n must be"),
        (["x", "-n0"], "tfsd: -n must be"),
        (["x", "--num-steps", "0"], "tfsd: --num-steps must be"),
        (["x", "--guidance", "x"], "tfsd: --guidance must be"),
        (["x", "--output", "x.gif"], "tfsd: --output must end in .png"),
        (["x", "-o", "x.gif"], "tfsd: -o must end in .png"),
        (["x", "--out"], "tfsd: --out needs a value. See tfsd generate --help."),
        (["x", "--dtype", "float23"], "must be one of float32, bfloat16, float16; got 'float23'. Did you mean float32?"),
        (["x", "--size", "60", "--model", "tiny"], "height of --size must be a multiple of 8"),
        (["x", "--num-steps", "100000", "--model", "tiny"], "tfsd: --num-steps must be a whole number from 1 to 1000"),
        (["x", "--dtype", "z" * 10**5], "got 'zzz"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_message_names_the_option_as_it_was_typed(argv, message, run):
    status, out, err = run(*argv)
    assert (status, out) == (2, "") and one_line(err) and message in err and len(err) < 400


def examples() -> list[str]:
    """Returns the command lines in all help pages."""
    found, parsers = [], [build_parser()]
    for parser in parsers:
        for action in parser._actions:
            parsers += action.choices.values() if isinstance(action, argparse._SubParsersAction) else []
        lines = (parser.epilog or "").splitlines()
        found += [line.strip().split("   ")[0] for line in lines if line.startswith(("  tfsd ", "  echo ", "  KERAS_BACKEND"))]
    return found


@pytest.mark.parametrize("line", sorted(set(examples())))
def test_every_example_of_the_help_pages_is_understood(line):
    for part in line.split("&&"):
        words = shlex.split(part.split(" | ")[-1].split(" > ")[0], comments=True)
        words = words[words.index("tfsd") + 1 :]
        assert callable(_parsed(words).run) if words[0] != "help" else with_command(words)[-1] == "--help"


def test_every_command_has_examples():
    assert len(examples()) > 30


QUICK = [
    ["--help"],
    ["version"],
    ["completion", "bash"],
    ["help", "generate"],
    ["list"],
    ["x", "-n", "0"],
    ["x", "--nn"],
    ["a", "b"],
]


def test_help_version_completion_and_wrong_usage_import_neither_tensorflow_nor_numpy():
    script = f"""
import contextlib, io, json, sys
from tfsd.cli import main
for argv in {QUICK}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(argv)
print(json.dumps(sorted({{"tensorflow", "numpy", "keras", "PIL", "tqdm", "ftfy"}} & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_names_that_are_known_without_numpy_are_those_of_the_tables():
    from tfsd.converters.device.recipes import RECIPES
    from tfsd.models import DTYPES
    from tfsd.samplers.names import COMMUNITY_NAMES
    from tfsd.samplers.plans import SAMPLERS
    from tfsd.specs import NUMERICS, limits

    assert tuple(COMMUNITY_NAMES) == tuple(SAMPLERS) and limits.QUANTIZATIONS == tuple(RECIPES)
    assert set(limits.DTYPES) == set(DTYPES) and set(limits.NUMERICS) == set(NUMERICS)
