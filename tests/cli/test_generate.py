import contextlib
import gc
import hashlib
import io
import json
import shlex
import shutil
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from command_line import LONG, one_line, start, toy
from PIL import Image

from tfsd.cli import main
from tfsd.images import Images, read_recipe


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, toy_folder, loaded_once):
    """A folder in which some commands were run, and what each of them printed."""
    place = tmp_path_factory.mktemp("gallery")
    shutil.copytree(toy_folder, place / "toy")
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("tfsd.api.load", loaded_once)
        for name, argv in {
            "several": [
                'a "red" star',
                "--seed",
                "4",
                "--n",
                "3",
                "--batch",
                "2",
                "--negative=-red",
                "--eta",
                "0.5",
                "--out",
                "x.png",
            ],
            "grid": ["a star", LONG, "--n", "2", "--seed", "3", "--grid", "--columns", "4", "--out", "grid.png"],
            "bare": ["A red star!"],
            "from an image": ["a star", "--image", "x-0.png", "--strength=0.5", "--seed=2", "--out", "edited.png"],
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


def test_an_image_is_made_of_another_and_show_tells_of_which(gallery, run):
    place, printed = gallery
    assert printed["from an image"] == (0, "edited.png\n", "")
    recipe, source = read_recipe(place / "edited.png"), (place / "x-0.png").read_bytes()
    assert (recipe["strength"], recipe["steps_made"], recipe["fit"]) == (0.5, 1, "crop")
    assert recipe["image_sha256"] == hashlib.sha256(source).hexdigest()
    _, out, _ = run("show", place / "edited.png")
    assert "--image=IMAGE" in out and "--strength=0.5" in out and recipe["image_sha256"] in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--strength", "0.5"], "--strength requires --image. Add --image FILE"),
        (["--fit", "pad"], "--fit requires --image. Add --image FILE"),
        (["--image", "none.png"], "none.png"),
        (["--image", "toy/spec.json"], "--image 'toy/spec.json' is not an image file that can be read: PNG"),
        (["--image", "x-0.png", "--strength", "2"], "--strength"),
        (["--image", "x-0.png", "--server", "localhost:1"], "--image cannot be given with --server: exports begin with noise"),
        (["--init-img", "x-0.png"], "--image"),
    ],
)
def test_mistakes_with_images_are_found_before_a_model_is_loaded(options, words, gallery, run, monkeypatch):
    monkeypatch.chdir(gallery[0])
    monkeypatch.setattr("tfsd.api.load", None)
    model = [] if "--server" in options else ["--model", "toy", "--no-jit"]
    status, out, err = run("a star", *options, *model)
    assert status in (1, 2) and out == "" and one_line(err) and words in err


def test_command_that_show_prints_makes_the_picture_again(gallery):
    """In a batch of one instead of two, where sums may round to the other side."""
    place, printed = gallery
    assert printed["again"][:3] == ["tfsd", "generate", 'a "red" star']
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
    assert err.startswith("tfsd: warning: prompt[1] has 122 tokens and only 77 are read; cut off: ', a red star")


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


@pytest.mark.slow
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
