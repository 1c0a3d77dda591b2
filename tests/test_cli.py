import contextlib
import gc
import gzip
import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tfsd.cli import COMMANDS, main, with_command
from tfsd.cli.generate import batches
from tfsd.cli.parsing import UsageError
from tfsd.cli.show import command
from tfsd.cli.terminal import describe, printable
from tfsd.images import Images, read_recipe

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
LONG = "a red cat, " * 30  # 122 tokens


@pytest.fixture
def place(tmp_path, toy_folder, monkeypatch):
    """An empty folder to work in, where the model folder `toy` lies beside, with an empty cache."""
    (tmp_path / "work").mkdir()
    shutil.copytree(toy_folder, tmp_path / "work" / "toy")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("TFSD_HOME", str(tmp_path / "home"))
    return tmp_path / "work"


@pytest.fixture
def run(capsys):
    """Runs the command; returns its status, output and errors."""

    def run(*argv):
        capsys.readouterr()
        status = main([str(word) for word in argv])
        return status, *capsys.readouterr()

    return run


def toy(*argv):
    return (*argv, "--model", "toy", "--no-jit")


def made(folder) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != "toy")


def one_line(text: str) -> bool:
    return text.startswith("tfsd: ") and text.endswith("\n") and text.count("\n") == 1


# -- help and errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_names_every_command_and_shows_how_to_begin(argv, capsys):
    if argv:
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 0
    else:
        assert main(argv) == 0
    text = capsys.readouterr().out
    assert all(f"\n    {name} " in text for name in COMMANDS)
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


@pytest.mark.parametrize(
    "argv, message",
    [
        (("x", "--model", "missing"), "There is no model 'missing'"),
        (("x", "--model", "sd-1.4"), "tfsd download sd-1.4 --accept-licence"),
        (("x", "--model", "."), "no model folder"),
        (("x", "--model", "toy", "--out", "missing/x.png"), "there is no folder"),
        (("x", "--model", "toy", "--out", "toy/spec.json/x.png"), "there is no folder"),
        (("show", "missing.png"), "No such file"),
        (("show", "toy/spec.json"), "no PNG file"),
        (("show", "."), "no file"),
        (("convert", "missing", "new"), "does not exist"),
        (("download", "sd-1.4"), "To accept, add --accept-licence"),
        (("download", "sd-9"), "knows sd-1.4"),
        (("download", "sd-1.4", "--accept-licence", "--offline"), "offline mode allows no download"),
        (("eval", "--model", "toy", "--sheet", "missing/x.png"), "there is no folder"),
        (("eval", "--model", "missing"), "There is no model 'missing'"),
        (("tokens", "x", "--model", "missing"), "There is no model 'missing'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_failure_is_one_line_and_exits_1(argv, message, place, run):
    status, out, err = run(*argv)
    assert (status, out) == (1, "")
    assert message in err
    assert one_line(err.splitlines(keepends=True)[-1])
    assert made(place) == []


def test_damaged_weights_are_named(place, run):
    data = bytearray((place / "toy/unet.weights.h5").read_bytes())
    data[len(data) // 2] ^= 1
    (place / "toy/unet.weights.h5").write_bytes(data)
    status, out, err = run(*toy("a red star"))
    assert (status, out) == (1, "")
    assert one_line(err) and "unet.weights.h5 is damaged" in err
    assert made(place) == []


def test_debug_shows_where_an_error_comes_from(place):
    for argv in (["--debug", "show", "missing.png"], ["show", "missing.png", "--debug"]):
        with pytest.raises(OSError, match="missing.png"):
            main(argv)


def test_unexpected_errors_are_one_line_too():
    assert describe(KeyError("x")) == (1, "KeyError: 'x' (--debug shows where)")
    assert describe(RuntimeError("first\nsecond")) == (1, "RuntimeError: first (--debug shows where)")
    assert describe(RuntimeError()) == (1, "RuntimeError: RuntimeError (--debug shows where)")
    assert describe(MemoryError())[1].startswith("out of memory")
    assert len(describe(ValueError("x" * 10**6))[1]) < 1100


def test_nothing_printed_can_steer_a_terminal():
    assert printable("a\x1b[2Jb\x9b\n\u202e\u2603") == "a\\x1b[2Jb\\x9b\\n\\u202e\u2603"


# -- generate ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, toy_folder):
    """A folder in which some commands were run, and what each of them printed."""
    place = tmp_path_factory.mktemp("gallery")
    shutil.copytree(toy_folder, place / "toy")
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, argv in {
            "several": [
                "a 'red' star",
                "--seed",
                "4",
                "--n",
                "3",
                "--batch",
                "2",
                "--negative=-blue",
                "--eta",
                "0.5",
                "--out",
                "x.png",
            ],
            "grid": ["a star", LONG, "--n", "2", "--seed", "3", "--grid", "--columns", "4", "--out", "grid.png"],
            "bare": ["A red star!"],
        }.items():
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main(toy(*argv))
            printed[name] = status, out.getvalue(), err.getvalue()
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            main(["show", "x-2.png"])
        again = next(line for line in out.getvalue().splitlines() if line.startswith("again:"))
        printed["again"] = shlex.split(again.removeprefix("again:"))
        assert main([*printed["again"][1:], "--out", "again.png", "--quiet"]) == 0
    return place, printed


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_prompt_alone_makes_a_picture_and_prints_its_name(gallery):
    place, printed = gallery
    assert printed["bare"] == (0, "a-red-star.png\n", "")
    assert Image.open(place / "a-red-star.png").size == (32, 32)
    assert read_recipe(place / "a-red-star.png")["prompt"] == "A red star!"


def test_several_pictures_are_numbered(gallery):
    place, printed = gallery
    assert printed["several"] == (0, "x-0.png\nx-1.png\nx-2.png\n", "")
    recipes = [read_recipe(place / f"x-{i}.png") for i in range(3)]
    assert [(recipe["seed"], recipe["index"]) for recipe in recipes] == [(4, 0), (4, 1), (4, 2)]
    assert np.abs(pixels(place / "x-0.png") - pixels(place / "x-1.png")).max() > 1


def test_command_that_show_prints_makes_the_picture_again(gallery):
    """In a batch of one instead of two, where sums may round to the other side."""
    place, printed = gallery
    assert printed["again"][:3] == ["tfsd", "generate", "a 'red' star"]
    assert read_recipe(place / "again.png") == read_recipe(place / "x-2.png")
    assert np.abs(pixels(place / "again.png") - pixels(place / "x-2.png")).max() <= 1


def test_fresh_process_writes_the_same_bytes_and_shows_nothing_of_tensorflow(gallery, tmp_path):
    place, printed = gallery
    process = start(*printed["again"][1:], "--out", str(tmp_path / "fresh.png"), cwd=place)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (0, f"{tmp_path / 'fresh.png'}\n", "")
    assert (tmp_path / "fresh.png").read_bytes() == (place / "again.png").read_bytes()


def test_grid_is_one_file_with_all_recipes(gallery):
    place, printed = gallery
    assert printed["grid"][:2] == (0, "grid.png\n")
    assert Image.open(place / "grid.png").size == (4 * 32, 32)
    recipes = read_recipe(place / "grid.png")["pictures"]
    assert [(r["prompt"], r["index"]) for r in recipes] == [("a star", 0), ("a star", 1), (LONG, 0), (LONG, 1)]


def test_one_line_tells_what_of_a_prompt_is_cut_off(gallery):
    _, (_, _, err) = gallery[0], gallery[1]["grid"]
    assert one_line(err)
    assert err.startswith("tfsd: warning: prompt[1] has 122 tokens and only 77 are read; cut off: ', a red cat")


def test_show_json_is_the_recipe(gallery, run):
    status, out, _ = run("show", gallery[0] / "x-0.png", "--json")
    assert status == 0 and json.loads(out) == read_recipe(gallery[0] / "x-0.png")


def test_every_argument_reaches_the_recipe(place, run):
    argv = "--seed -5 --index 3 --steps 2 --scale 1.5 --sampler ddim --eta 0.25 --height 16 --width 24 --dtype bfloat16"
    status, _, err = run(
        *toy("generate", "a star", *argv.split(), "--negative", "red", "--numerics", "kerascv", "--out", "x.png")
    )
    assert (status, err) == (0, "")
    recipe = read_recipe("x.png")
    expected = {
        "prompt": "a star",
        "negative_prompt": "red",
        "seed": -5,
        "index": 3,
        "num_steps": 2,
        "guidance_scale": 1.5,
        "sampler": "ddim",
        "eta": 0.25,
        "height": 16,
        "width": 24,
        "model": "toy",
        "dtype": "bfloat16",
        "numerics": "kerascv",
        "jit_compile": False,
    }
    assert {name: recipe[name] for name in expected} == expected
    assert Image.open("x.png").size == (24, 16)


def test_prompts_come_from_standard_input(place, run, monkeypatch):
    text = "\ufeffa red star\n\n  a star\u2603 \n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    status, out, _ = run(*toy("--prompts", "-", "--seed", 1, "--out", "{prompt}.png"))
    assert (status, out) == (0, "a-red-star.png\na-star.png\n")
    recipes = [read_recipe(name) for name in out.split()]
    assert [(r["prompt"], r["seed"], r["index"]) for r in recipes] == [("a red star", 1, 0), ("a star\u2603", 1, 0)]


@pytest.mark.parametrize("data, message", [(b"\n \n", "holds no prompt"), (b"a\xff", "not UTF-8"), (b"a" * (2**24 + 1), "bytes")])
def test_file_that_holds_no_prompts_is_refused(data, message, place, run):
    Path("prompts.txt").write_bytes(data)
    status, out, err = run(*toy("--prompts", "prompts.txt"))
    assert (status, out) == (2, "") and message in err and one_line(err)


@pytest.mark.parametrize("count, n, size", [(1, 1, 4), (1, 5, 4), (7, 1, 4), (3, 5, 2), (2, 4, 4), (1, 64, 64)])
def test_batches_hold_every_picture_once_and_have_one_size(count, n, size):
    prompts = [f"prompt {i}" for i in range(count)]
    jobs = batches(prompts, n, 10, size)
    found = [(prompt, job.index + (i if job.same else 0)) for job in jobs for i, prompt in enumerate(job.prompts) if i < job.keep]
    assert found == [(prompt, 10 + i) for prompt in prompts for i in range(n)]
    assert len({len(job.prompts) for job in jobs}) == 1
    assert len(jobs[0].prompts) <= size


def test_files_without_a_name_are_called_after_their_own_prompts(place, run):
    Path("a-star.png").touch()
    status, out, _ = run(*toy("a red star", "a star", "A red star!", "--steps", "1"))
    assert (status, out) == (0, "a-red-star.png\na-star_2.png\na-red-star_2.png\n")
    assert [read_recipe(name)["prompt"] for name in out.split()] == ["a red star", "a star", "A red star!"]
    out = run(*toy("a red star", "a star", "--n", "2", "--steps", "1"))[1]
    assert out.split() == ["a-red-star_3-0.png", "a-red-star_3-1.png", "a-star_3-0.png", "a-star_3-1.png"]
    assert [read_recipe(name)["index"] for name in out.split()] == [0, 1, 0, 1]
    assert Path("a-star.png").read_bytes() == b""


@pytest.mark.parametrize("grid", [(), ("--grid",)])
def test_name_that_another_run_took_in_the_meantime_is_left_to_it(grid, place, run, monkeypatch):
    def others(recipe):
        Path("a-star.png").write_bytes(b"of another")
        return True

    import tfsd.api

    load = tfsd.api.load
    monkeypatch.setattr(tfsd.api, "load", lambda *args, **kwargs: others(None) and load(*args, **kwargs))
    status, out, _ = run(*toy("a star", "--steps", "1", *grid))
    assert (status, out) == (0, "a-star_2.png\n")
    assert Path("a-star.png").read_bytes() == b"of another"
    assert "a star" in str(read_recipe("a-star_2.png"))


def test_pictures_are_let_go_once_they_are_written(place, run, monkeypatch):
    seen, most = [], []
    save = Images.save

    def saved(images, *args, **kwargs):
        seen.append(weakref.ref(images))
        gc.collect()
        most.append(sum(one() is not None for one in seen))
        return save(images, *args, **kwargs)

    monkeypatch.setattr(Images, "save", saved)
    assert run(*toy("a star", "--n", "6", "--batch", "2", "--steps", "1", "--out", "x.png"))[0] == 0
    assert len(most) == 6 and max(most) <= 2


def start(*argv, **kwargs) -> subprocess.Popen:
    command = [sys.executable, "-m", "tfsd", *argv]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    kwargs |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell's background jobs, and so these tests in one, are born deaf to Ctrl-C; the command under test must not be.
    return subprocess.Popen(command, env=env, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **kwargs)


def test_interruption_exits_130_and_keeps_whole_files_alone(place):
    process = start(*toy("a red star", "--n", "5000", "--batch", "1", "--steps", "1", "--seed", "1", "--out", "x.png"), cwd=place)
    assert process.stdout.readline() == "x-0000.png\n"  # it is in the midst of its work
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert one_line(err) and "interrupted" in err
    for name in made(place):
        assert read_recipe(name)["prompt"] == "a red star"


def test_reader_that_goes_away_is_no_traceback(place):
    Path("p.jsonl").write_text('{"prompt": "a red star"}\n' * 20_000)
    process = start("tokens", "--file", "p.jsonl", cwd=place)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


# -- the other commands ------------------------------------------------------------------------------------------------


def with_recipe(recipe: dict | str, name: str = "x.png") -> str:
    """Writes a picture with a recipe of anyone's."""
    info = PngInfo()
    info.add_itxt("tfsd", recipe if isinstance(recipe, str) else json.dumps(recipe))
    Image.new("RGB", (1, 1)).save(name, pnginfo=info)
    return name


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"prompt": {"deep": {"deeper": "\x1b"}}},
        {"prompt": 5},
        {"prompt": "x", "seed": [1, {"a": None}]},
        {"prompt": "x", "seed": True},
        {"prompt": "x", "num_steps": 2.5},
        {"prompt": "x", "sampler": "\x1b[2J", "eta": "0"},
        {"prompt": "x", "model": None},
        {"prompt": "x", "pictures": 3},
        {"pictures": [1]},
        {"pictures": [{"prompt": "x"}, {}]},
        '{"prompt": "x", "guidance_scale": 1e999}',
        '{"prompt": "x", "guidance_scale": NaN}',
    ],
    ids=str,
)
def test_show_refuses_a_recipe_that_no_picture_has(recipe, place, run):
    status, out, err = run("show", with_recipe(recipe))
    assert (status, out) == (1, "") and one_line(err) and "x.png is damaged" in err and "\x1b" not in err


def test_show_is_safe_with_recipes_of_others(place, run):
    recipe = {"prompt": "\x1b[2J\u202e", "model": "\x1b[2J", "weights": "\x1b", "more": {"\x1b": {"deeper": ["\x1b"]}}}
    status, out, err = run("show", with_recipe({"pictures": [recipe, recipe]}))
    assert (status, err) == (0, "") and "\x1b" not in out and "\u202e" not in out


PROMPTS = [
    "a red star",
    "a 'red' star; rm -rf $HOME `date` \\ \"!\"",
    "-red",
    "",
    " ",
    "two\nlines\tand a tab7",
    "full\u3000width \u2603 'quoted' \\",
    "\x1b[2J\x07\x9b\u202e0",
    "\U0001f431\udcff",
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs the shell that reads the line")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("prompt", PROMPTS, ids=ascii)
def test_shell_reads_the_prompt_from_the_command_that_show_prints(prompt, encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    line = command({"prompt": prompt, "negative_prompt": prompt, "seed": 1})
    assert printable(line) == line
    script = line.replace("tfsd generate", "printf '%s\\0'", 1).encode(encoding)
    words = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.split(b"\0")[:-1]
    expected = ["--negative=" + prompt] * (prompt != "") + ["--seed=1"]
    expected = [*expected, "--", prompt] if prompt.startswith("-") else [prompt, *expected]
    assert words == [word.encode("utf-8", "surrogateescape") for word in expected]


@pytest.mark.parametrize("prompt", ["zero\0byte", "half a pair \ud83d"])
def test_show_says_where_no_command_line_fits(prompt):
    assert command({"prompt": prompt}) == "(made in Python: its texts fit no command line)"
    assert command({"prompt": "a", "negative_prompt": prompt}) == "(made in Python: its texts fit no command line)"


@pytest.mark.parametrize(
    "recorded, given",
    [
        ({"numerics": "compvis", "numerics_override": "compvis"}, ["--numerics=compvis"]),
        ({"numerics": "kerascv", "numerics_override": "kerascv"}, ["--numerics=kerascv"]),
        ({"numerics": "kerascv", "numerics_override": None}, []),
        ({"numerics": "kerascv"}, []),
    ],
)
def test_command_has_the_numerics_that_were_asked_for(recorded, given):
    assert command({"prompt": "a", "model": "some/folder", **recorded}).split() == [
        "tfsd",
        "generate",
        "a",
        "--model=some/folder",
        *given,
    ]


def test_show_tells_where_the_model_is_another(place, run):
    weights = hashlib.sha256(Path("toy/manifest.json").read_bytes()).hexdigest()[:12]
    assert "made with" not in run("show", with_recipe({"prompt": "a", "model": "toy", "weights": weights}))[1]
    out = run("show", with_recipe({"prompt": "a", "model": "toy", "weights": "4e2e00000000"}))[1]
    assert f"made with other weights (4e2e00000000) than the model of that name here ({weights}): pass --model FOLDER\n" in out
    out = run("show", with_recipe({"prompt": "a", "model": "gone", "weights": "4e2e00000000"}))[1]
    assert "made with weights (4e2e00000000) of a model 'gone' that is not here: pass --model FOLDER\n" in out
    assert "nothing tells which weights" in run("show", with_recipe({"prompt": "a", "model": "toy"}))[1]


def test_tokens_shows_what_is_read_and_what_is_cut_off(run):
    status, out, _ = run("tokens", "a red star")
    assert status == 0
    assert out.split("\n")[:5] == [" 49406  start", "   320  a", "   736  red", "  1565  star", " 49407  end"]
    assert "5 tokens, 77 are read; nothing is cut off" in out
    out = run("tokens", LONG)[1]
    assert out.count("(cut off)") == 45 and "122 tokens, 77 are read; cut off: , a red cat" in out


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


def test_models_lists_what_can_be_named(place, run):
    status, out, _ = run("models")
    assert status == 0 and "sd-1.4" in out and "not downloaded" in out
    entries = {entry["name"]: entry for entry in json.loads(run("models", "--json")[1])}
    assert entries["sd-1.4"]["licence"] == "CreativeML Open RAIL-M"


def test_converted_model_can_be_named(place, run):
    source = DATA / "diffusers/a_sd1"
    status, out, err = run("convert", source, "new", "--dtype", "float16", "--quiet")
    assert (status, out, err) == (0, "new\n", "")
    status, _, err = run("convert", source, "new", "--quiet")
    assert status == 1 and one_line(err) and "not empty" in err
    assert run("convert", source, "new", "--quiet", "--overwrite", "--name", "other")[0] == 0
    assert json.loads(Path("new/spec.json").read_text())["name"] == "other"


def test_source_that_is_damaged_leaves_no_model(place, run):
    shutil.copytree(DATA / "diffusers/a_sd1", "source")
    weights = Path("source/unet/diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    status, _, err = run("convert", "source", "new", "--quiet")
    assert status == 1 and one_line(err)
    assert made(place) == ["source"]


def test_report_outlives_a_sheet_that_fails(place, run, monkeypatch):
    """The folder vanishes while the pictures are made."""
    from tfsd.training import checker

    Path("sheets").mkdir()
    accuracy = checker.accuracy
    monkeypatch.setattr(checker, "accuracy", lambda n, seed: os.rmdir("sheets") or accuracy(n=2, seed=seed))
    status, out, err = run("eval", "--model", "toy", "--n", "1", "--steps", "1", "--sheet", "sheets/x.png", "--quiet", "--json")
    assert status == 1 and one_line(err) and "there is no folder sheets" in err
    assert json.loads(out)["n"] == 1 and "sheet_error" not in json.loads(out)


def test_sheet_is_whole_or_not_there(tmp_path):
    from tfsd.training.evaluate import contact_sheet

    shown = [(np.full((32, 32, 3), i, "uint8"), "a red star") for i in range(9)]
    contact_sheet(shown, tmp_path / "x.PNG")
    contact_sheet(shown, str(tmp_path / "y.png"))
    assert Image.open(tmp_path / "x.PNG").size == (8 * 36, 2 * 62)
    with pytest.raises(OSError, match="there is no folder"):
        contact_sheet(shown, tmp_path / "missing" / "x.png")
    assert sorted(os.listdir(tmp_path)) == ["x.PNG", "y.png"]
