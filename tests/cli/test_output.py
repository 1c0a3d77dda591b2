"""Where pictures go: folders, standard output, and formats other than PNG; and where prompts come from."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import made, one_line, start, toy
from PIL import Image

from tfsd.images import read_recipe


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_other_formats_carry_the_recipe(ending, place, run):
    status, out, _ = run(*toy("a star", "--seed", "3", "--steps", "1", "-o", f"x.{ending}"))
    assert (status, out) == (0, f"x.{ending}\n")
    assert read_recipe(f"x.{ending}")["seed"] == 3 and Image.open(f"x.{ending}").size == (32, 32)


def test_folder_gets_free_names_made_of_the_prompts(place, run):
    Path("pictures").mkdir()
    for name in ("pictures", "pictures/"):
        assert run(*toy("a star", "--steps", "1", "--out", name))[0] == 0
    assert made("pictures") == ["a-star.png", "a-star_2.png"]


def test_folder_that_is_not_there_is_not_made(place, run):
    status, out, err = run(*toy("a star", "--out", "nowhere/"))
    assert (status, out) == (1, "") and one_line(err) and "there is no folder nowhere/" in err
    assert made(place) == []


def test_picture_on_standard_output_is_the_file(place, tmp_path):
    """The prompt comes from standard input; a comment in it is none."""
    with open(tmp_path / "x.png", "wb") as file:
        argv = toy("-", "--seed", "3", "--steps", "1", "--out", "-")
        process = start(*argv, cwd=place, stdin=subprocess.PIPE, output=file)
        _, err = process.communicate("# a comment\n\n a star\n")
    assert (process.returncode, err) == (0, "")
    recipe = read_recipe(tmp_path / "x.png")
    assert (recipe["prompt"], recipe["seed"]) == ("a star", 3)
    assert made(place) == []


def test_terminal_gets_no_bytes_of_a_picture(place, run, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    status, out, err = run(*toy("a star", "--output", "-"))
    assert (status, out) == (2, "") and one_line(err) and "--output - writes the bytes of an image" in err


def test_several_pictures_do_not_fit_standard_output(place, run):
    status, _, err = run(*toy("a star", "-n", "2", "-o", "-"))
    assert status == 2 and one_line(err) and "-o - takes one image; got 2. Add --grid" in err


@pytest.mark.parametrize("text", ["# only\n  # comments\n", "", "\n"])
def test_standard_input_without_a_prompt_is_wrong_usage(text, place, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    status, out, err = run(*toy("-"))
    assert (status, out) == (2, "") and one_line(err) and "standard input holds no prompt" in err


def test_empty_prompt_must_be_asked_for(place, run):
    status, _, err = run(*toy(""))
    assert status == 2 and one_line(err) and "--allow-empty" in err
    status, out, _ = run(*toy("", "--allow-empty", "--steps", "1", "--seed", "1"))
    assert (status, out) == (0, "picture.png\n")
    assert "--allow-empty" in run("show", "picture.png")[1]


def test_size_is_height_and_width(place, run):
    assert run(*toy("a star", "--steps", "1", "--size", "16x24", "--out", "x.png"))[0] == 0
    assert Image.open("x.png").size == (24, 16)
