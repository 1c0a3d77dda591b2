import hashlib
import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import one_line
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tfsd.cli.show import command
from tfsd.cli.terminal import printable


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
    expected += ["--allow-empty"] * (prompt.strip() == "")
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


def test_several_files_are_shown_and_those_that_cannot_be_read_are_named(place, run):
    one, two = with_recipe({"prompt": "a cat", "seed": 1}, "one.png"), with_recipe({"prompt": "a dog", "seed": 2}, "two.png")
    status, out, err = run("show", one, "missing.png", two)
    assert status == 1 and one_line(err) and "missing.png" in err
    assert out.index("one.png:") < out.index("a cat") < out.index("two.png:") < out.index("a dog")
    status, out, err = run("show", one, two, "--json")
    assert (status, err) == (0, "") and json.loads(out)["two.png"] == {"prompt": "a dog", "seed": 2}


def test_grid_without_pictures_is_damaged(place, run):
    status, out, err = run("show", with_recipe({"columns": 1, "pictures": []}))
    assert (status, out) == (1, "") and one_line(err) and "is a grid whose recipe lists no images" in err


def test_nothing_is_shown_of_what_a_recipe_leaves_open(place, run):
    file = with_recipe({"prompt": "a cat", "numerics_override": None, "model_version": None})
    assert "null" not in run("show", file)[1] and "numerics_override" not in run("show", file)[1]
    assert json.loads(run("show", file, "--json")[1])["numerics_override"] is None


def test_parameters_of_other_programs_are_shown_with_a_command_for_a_picture_of_the_kind(place, run):
    last = "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 5, Size: 64x32, Clip skip: 2"
    text = f"a (red:1.2) star\nNegative prompt: blue\n{last}"
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (1, 1)).save("theirs.png", pnginfo=info)
    status, out, err = run("show", "theirs.png")
    assert (status, err) == (0, "")
    again = shlex.split(next(line for line in out.splitlines() if line.startswith("like it:")))[2:]
    assert {"--negative=blue", "--steps=20", "--sampler=dpmpp_2m_karras", "--scale=7.0", "--height=32"} <= set(again)
    assert "Clip skip" in out and "plain words" in out and "not the same" in out
    assert json.loads(run("show", "theirs.png", "--json")[1])["num_steps"] == 20


def test_picture_without_any_recipe_says_so(place, run):
    Image.new("RGB", (1, 1)).save("bare.png")
    status, out, err = run("show", "bare.png")
    assert (status, out) == (1, "") and one_line(err) and "bare.png has no recipe" in err
