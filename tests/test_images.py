import copy
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from pictures import pictures, recipe
from PIL import Image

from tfsd.images import ImageFileError, Images, Picture, file_names, free_names, read_recipe
from tfsd.images.files import FileThereError

ROOT = Path(__file__).parents[1]


def test_images_are_the_uint8_array_that_kerascv_returns():
    images = pictures(3)
    assert isinstance(images, np.ndarray) and images.dtype == np.uint8
    assert images.shape == (3, 8, 16, 3) and len(images) == 3
    np.testing.assert_array_equal(np.asarray(Image.fromarray(images[1])), np.asarray(images)[1])


@pytest.mark.parametrize(
    "part",
    [
        lambda x: x / 255,
        lambda x: x + x,
        lambda x: x[0] + 1,
        lambda x: x.mean(0),
        lambda x: x[0].mean(0),
        lambda x: x[:, 0],
        lambda x: x[0, 0],
        lambda x: x[0][0],
        lambda x: x[None],
        lambda x: x[x > 5],
        lambda x: x[[[0, 1], [1, 0]]],
        lambda x: x[0:0],
        np.asarray,
        np.stack,
        lambda x: np.concatenate([x, x]),
        lambda x: np.stack([x[0], x[2]]),
        lambda x: np.flip(x[0], 1),
        lambda x: np.array([x[0], x[1]]),
        lambda x: np.where(x > 5, x, 0),
    ],
)
def test_what_is_computed_from_pictures_is_a_plain_array(part):
    images, plain = pictures(3), np.asarray(pictures(3))
    assert type(part(images)) is np.ndarray
    np.testing.assert_array_equal(part(images), part(plain))


@pytest.mark.parametrize(
    "key",
    [slice(1, 3), slice(None), slice(None, None, -1), [0, 2], np.array([2, 0]), [True, False, True], np.arange(3) > 0, Ellipsis],
    ids=str,
)
def test_slices_keep_their_recipes(key, tmp_path):
    images = pictures(3)
    part, wanted = images[key], [images.recipes[i] for i in np.arange(3)[key]]
    assert type(part) is Images and part.recipes == wanted and part.seeds == [one["seed"] for one in wanted]
    np.testing.assert_array_equal(part, np.asarray(images)[key])
    for name, one, picture in zip(part.save(tmp_path / "out.png"), wanted, part.pil()):
        assert read_recipe(name) == one
        np.testing.assert_array_equal(np.asarray(Image.open(name)), np.asarray(picture))


@pytest.mark.parametrize("key", [0, -1, np.int64(2), np.array(1)], ids=str)
def test_one_picture_keeps_its_recipe(key, tmp_path):
    images = pictures(3)
    picture, i = images[key], int(key) % 3
    assert type(picture) is Picture and picture.shape == (8, 16, 3) and picture.dtype == np.uint8
    assert picture.recipe == images.recipes[i] and picture.seed == 7
    np.testing.assert_array_equal(picture, np.asarray(images)[i])
    name = picture.save(tmp_path / "one.png")
    assert name == tmp_path / "one.png" and read_recipe(name) == picture.recipe
    np.testing.assert_array_equal(np.asarray(picture.pil()), np.asarray(images)[i])
    assert Image.open(io.BytesIO(picture._repr_png_())).size == (16, 8)


def test_iterating_gives_pictures():
    images = pictures(3)
    assert [(type(picture), picture.recipe["index"]) for picture in images] == [(Picture, 0), (Picture, 1), (Picture, 2)]
    assert [picture.recipe["index"] for picture in images[1:]] == [1, 2]


@pytest.mark.parametrize("key", [3, -4, "a", 1.5, [5], [True, False]], ids=str)
def test_keys_that_do_not_fit_are_index_errors(key):
    with pytest.raises(IndexError):
        pictures(3)[key]


def test_a_picture_survives_pickling_and_copying():
    picture = pictures(2)[1]
    for other in (pickle.loads(pickle.dumps(picture)), picture.copy(), copy.copy(picture), copy.deepcopy(picture)):
        assert type(other) is Picture and other.recipe == picture.recipe and other.recipe is not picture.recipe
        np.testing.assert_array_equal(other, picture)


def test_what_was_computed_from_a_picture_is_none(tmp_path):
    for other in (pictures()[0].astype("float32"), pictures()[0].reshape(-1, 3), pictures()[0].T):
        for call in (other.pil, lambda other=other: other.save(tmp_path / "a.png"), lambda other=other: other.recipe):
            with pytest.raises(ValueError, match=r"Only whole uint8 images \[H, W, 3\]"):
                call()
        assert other._repr_png_() is None and repr(other).startswith("Picture([[") and "\n" in str(other)


def test_pictures_describe_themselves_on_one_line():
    images = pictures(3)
    assert repr(images) == str(images) == "<Images: 3 images of 16 x 8 pixels: 'a red star' and 2 more prompts>"
    assert repr(images[:1]) == "<Images: 1 image of 16 x 8 pixels: 'a red star'>"
    untold = Images(np.asarray(images), [recipe | {"prompt": None} for recipe in images.recipes])  # of `generate_image`
    assert repr(untold) == "<Images: 3 images of 16 x 8 pixels>" and repr(untold[0]) == "<Picture of 16 x 8 pixels>"
    assert repr(images[0]) == f"{images[0]}" == "<Picture of 16 x 8 pixels: 'a red star'>"
    assert str(np.asarray(images)).startswith("[[[[")
    assert len(repr(Images(np.asarray(images)[:1], [recipe(prompt="x" * 10**6)]))) < 150


def test_numpy_scalars_come_out_as_scalars():
    assert np.isscalar(pictures(2).max()) and np.isscalar(pictures(2)[0, 0, 0, 0])


def test_recipes_survive_pickling_and_copying():
    images = pictures(2)
    for other in (pickle.loads(pickle.dumps(images)), images.copy(), copy.copy(images), copy.deepcopy(images)):
        assert other.recipes == images.recipes and other.recipes[0] is not images.recipes[0]
        np.testing.assert_array_equal(other, images)


@pytest.mark.parametrize(
    "change",
    [lambda x: x.take([2, 0, 1], axis=0), lambda x: np.roll(x, 1, axis=0), np.zeros_like, lambda x: x.reshape(x.shape)],
    ids=["take", "roll", "zeros_like", "reshape"],
)
def test_pictures_in_another_order_do_not_keep_the_recipes_of_the_first(change, tmp_path):
    other = change(pictures(3))
    assert getattr(other, "recipes", []) == []
    if isinstance(other, Images):
        with pytest.raises(ValueError, match="with 0 recipes"):
            other.save(tmp_path / "a.png")
        assert other._repr_png_() is None
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(other)), other)


def test_numpy_numbers_in_recipes_become_json():
    images = Images(np.zeros((1, 8, 8, 3), "uint8"), [recipe(seed=np.int64(5), guidance_scale=np.float32(0.5))])
    assert json.loads(json.dumps(images.recipes[0]))["seed"] == 5
    assert images.seeds == [5]


@pytest.mark.parametrize(
    "pixels, recipes",
    [
        (np.zeros((1, 8, 8, 3)), [{}]),
        (np.zeros((8, 8, 3), "uint8"), [{}]),
        (np.zeros((1, 8, 8, 4), "uint8"), [{}]),
        (np.zeros((0, 8, 8, 3), "uint8"), []),
        (np.zeros((2, 8, 8, 3), "uint8"), [{}]),
        (np.zeros((1, 8, 8, 3), "uint8"), [{"guidance_scale": float("nan")}]),
    ],
    ids=["float", "rank 3", "alpha", "empty", "recipes", "nan"],
)
def test_what_is_no_picture_is_refused(pixels, recipes):
    with pytest.raises(ValueError):
        Images(pixels, recipes)


def test_pil_gives_one_picture_or_all():
    images = pictures(3)
    assert [np.asarray(picture).tolist() for picture in images.pil()] == np.asarray(images).tolist()
    np.testing.assert_array_equal(np.asarray(images.pil(-1)), images[2])
    with pytest.raises(IndexError, match="from 0 to 2; got 3"):
        images.pil(3)
    with pytest.raises(TypeError, match="i must be a whole number; got ndarray float64"):
        images.pil(np.zeros(3))


@pytest.mark.parametrize("columns, size", [(None, (32, 16)), (1, (16, 24)), (2, (32, 16)), (9, (48, 8))])
def test_grid_has_every_picture_in_its_place(columns, size):
    images = pictures(3)
    sheet = images.grid(columns)
    assert sheet.size == size
    across = size[0] // 16
    for i, picture in enumerate(images):
        x, y = i % across * 16, i // across * 8
        np.testing.assert_array_equal(np.asarray(sheet)[y : y + 8, x : x + 16], picture)


@pytest.mark.parametrize("columns", [0, -1, 1.5, True, "2"])
def test_grid_refuses_columns_that_are_no_number(columns):
    with pytest.raises(ValueError, match="columns must be a whole number"):
        pictures(2).grid(columns)


def test_what_was_computed_from_pictures_cannot_be_saved_as_one(tmp_path):
    with pytest.raises(ValueError, match="Only whole uint8 images"):
        pictures().astype("float32").save(tmp_path / "a.png")


def test_saved_pictures_come_back_with_their_recipes(tmp_path):
    images = pictures(5)
    names = images.save(tmp_path / "out.png")
    assert [name.name for name in names] == [f"out-{i}.png" for i in range(5)]
    for i, name in enumerate(names):
        np.testing.assert_array_equal(np.asarray(Image.open(name)), images[i])
        assert read_recipe(name) == images.recipes[i]


def test_one_picture_gets_the_name_itself(tmp_path):
    assert pictures().save(str(tmp_path / "out.PNG")) == [tmp_path / "out.PNG"]
    assert os.listdir(tmp_path) == ["out.PNG"]


def test_same_pictures_are_the_same_bytes(tmp_path):
    first, second = (pictures().save(tmp_path / name)[0].read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_recipe_is_readable_text_too(tmp_path):
    text = Image.open(pictures().save(tmp_path / "out.png")[0]).text
    assert text["parameters"] == "a red star\nCFG scale: 7.5, Seed: 7, Index: 0"


def test_grid_file_has_all_recipes(tmp_path):
    images = pictures(3)
    recipes = read_recipe(images.save_grid(tmp_path / "grid.png", 3))
    assert recipes["columns"] == 3 and recipes["pictures"] == images.recipes


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("{n}.png", ["00.png", "10.png"]),
        ("{seed}_{index}.png", ["7_0.png", "7_10.png"]),
        ("{prompt}-{n}.png", ["a-red-star-00.png", "a-red-star-10.png"]),
        ("x.png", ["x-00.png", "x-10.png"]),
    ],
)
def test_patterns_name_the_pictures(pattern, expected):
    names = [name.name for name in file_names(pattern, [recipe(i) for i in range(11)])]
    assert [names[0], names[10]] == expected


@pytest.mark.parametrize(
    "path, message",
    [
        ("{seed}.png", "a different name"),
        ("{steps}.png", r"\{n\}, \{prompt\}, \{seed\}, \{index\}; got \{steps\}"),
        ("{}.png", "got {}"),
        ("out.gif", r"must end in .png, .jpg, .jpeg or .webp; got 'out.gif'"),
        ("out", "must end in .png"),
        ("", "must end in .png"),
    ],
)
def test_names_that_do_not_fit_are_refused(path, message):
    with pytest.raises(ValueError, match=message):
        file_names(path, [recipe(0), recipe(1)])


def test_path_of_another_type_is_refused():
    with pytest.raises(TypeError, match="path must be a str or a Path; got int"):
        pictures().save(1)


def test_existing_file_is_replaced_or_kept_as_asked(tmp_path):
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    with pytest.raises(ImageFileError, match="exists"):
        pictures().save(path, overwrite=False)
    assert path.read_bytes() == b"old"
    pictures().save(path)
    assert read_recipe(path) == recipe()


@pytest.mark.parametrize("name", ["missing/out.png", "folder.png", "file/out.png", "zero\0.png", "x" * 300 + ".png"])
def test_path_that_cannot_be_written_leaves_nothing_behind(tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_bytes(b"")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ImageFileError) as error:
        pictures().save(tmp_path / name)
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_if_one_of_several_cannot_be_written_none_is(tmp_path):
    (tmp_path / "out-1.png").mkdir()
    with pytest.raises(ImageFileError, match="out-1.png"):
        pictures(3).save(tmp_path / "out.png")
    assert os.listdir(tmp_path) == ["out-1.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX")
def test_full_disk_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    """A limit on the size of files makes writing fail as a full disk does, after the first bytes."""
    (tmp_path / "out.png").write_bytes(b"old")
    script = f"""
import resource, sys
import numpy as np
from tfsd.images import ImageFileError, Images
images = Images(np.random.RandomState(0).randint(0, 256, (1, 64, 64, 3)).astype("uint8"), [{{"seed": 1}}])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    images.save({str(tmp_path / "out.png")!r})
except ImageFileError as error:
    sys.exit(f"refused: {{error}}")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.startswith("refused: ") and done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["out.png"]
    assert (tmp_path / "out.png").read_bytes() == b"old"


def test_free_names_pass_over_what_is_there(tmp_path):
    def free(*texts):
        return [name.name for name in free_names(texts, tmp_path)]

    assert free("A red star!") == ["a-red-star.png"]
    (tmp_path / "a-red-star-0.png").touch()
    assert free("A red star!") == ["a-red-star_2.png"]
    (tmp_path / "A-red-star_2.PNG").touch()  # the same file on disks that do not tell capitals
    assert free("A red star!", "a cat", "a red STAR") == ["a-red-star_3.png", "a-cat.png", "a-red-star_4.png"]
    assert free("../..") == ["picture.png"]
    assert len(free("long " * 1000)[0]) < 80


def test_free_names_for_ten_thousand_prompts_without_letters_take_no_time(tmp_path):
    names = free_names(["!"] * 10_000, tmp_path)
    assert len(set(names)) == 10_000 and names[-1].name == "picture_10000.png"


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red star!", "a-red-star"),
        ("Ein blaues Häuschen, groß", "ein-blaues-häuschen-groß"),
        ("Ha\u0308user", "h\u00e4user"),  # decomposed letters are composed
        ("红色的星星，在夜晚", "红色的星星-在夜晚"),
        ("красная ЗВЕЗДА", "красная-звезда"),
        ("नीला घर", "नीला-घर"),  # vowel signs are marks
        ("บ้านสีฟ้า", "บ้านสีฟ้า"),
        ("بيت أزرق", "بيت-أزرق"),
        ("a\u202ecat\u200b\ufeff \u200fred", "acat-red"),  # nobody sees these
        ("می\u200cخواهم", "میخواهم"),
        ("\U0001f431 cat \U0001f469\u200d\U0001f680\ufe0f", "cat"),
        ("1\ufe0f\u20e3 star", "1-star"),
        ("\U0001f431", "picture"),
        ("\u0301", "picture"),
        ("half \ud83d pair", "half-pair"),
        ('a/b\\c:d*e?f"g<h>i|j\0k\nl', "a-b-c-d-e-f-g-h-i-j-k-l"),
        ("...", "picture"),
        ("CON", "con-picture"),
        ("lpt9", "lpt9-picture"),
        ("com\u00b9", "com\u00b9-picture"),
        ("console", "console"),
    ],
)
def test_names_keep_the_letters_of_any_script(prompt, name, tmp_path):
    assert free_names([prompt], tmp_path) == [tmp_path / f"{name}.png"]
    assert Images(pictures(), [recipe(prompt=prompt)]).save(tmp_path / "{prompt}.png") == [tmp_path / f"{name}.png"]
    assert os.listdir(tmp_path) == [f"{name}.png"]


@pytest.mark.parametrize("letter", ["x", "ä", "星", "\U00020000", "e\u0301\u0302", "ก้", "x "])
def test_names_are_short_enough_for_file_systems_and_letters_keep_their_marks(letter, tmp_path):
    stem = free_names([letter * 30_000], tmp_path)[0].stem
    assert 20 <= len(stem) <= 60 and len(stem.encode()) <= 160
    letter = unicodedata.normalize("NFC", letter).strip()
    assert stem.replace("-", "") == letter * (len(stem.replace("-", "")) // len(letter))
    Images(pictures(), [recipe(prompt=letter * 30_000, seed=-(2**63))]).save(tmp_path / "{prompt}_{seed}_{index}_{n}.webp")


def test_free_names_know_names_that_disks_take_for_the_same(tmp_path):
    (tmp_path / "Ha\u0308user.png").touch()
    assert free_names(["H\u00c4USER"], tmp_path) == [tmp_path / "h\u00e4user_2.png"]


def test_of_two_that_write_one_name_at_once_one_is_told(tmp_path):
    """Without `overwrite`, whichever comes second finds the file there: none is lost."""
    images, results = [pictures(), pictures(1, 8, 8)], []
    for _ in range(20):
        name, start, outcomes = tmp_path / f"{len(results)}.png", threading.Barrier(2), {}

        def write(i, name=name, start=start, outcomes=outcomes):
            start.wait()
            try:
                outcomes[i] = images[i].save(name, overwrite=False)
            except FileThereError as error:
                outcomes[i] = error

        threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won = [i for i, outcome in outcomes.items() if outcome == [name]]
        assert len(won) == 1 and Image.open(name).size == images[won[0]].pil(0).size
        results.append(outcomes)
    assert len(os.listdir(tmp_path)) == 20  # and nothing partial beside
