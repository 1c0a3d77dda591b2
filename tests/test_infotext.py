"""The text in picture files that other image generators read and write."""

import struct
import time
import zlib

import pytest
from PIL import Image, PngImagePlugin
from test_exif import USER_COMMENT, app1, jpeg, tiff, webp

from tfsd.images.files import ImageFileError, encode, foreign_recipe, infotext, parse_infotext, read_parameters

RECIPE = {
    "prompt": "a cat, sitting: still",
    "negative_prompt": "blurry",
    "seed": 7,
    "index": 2,
    "guidance_scale": 7.0,
    "num_steps": 20,
    "sampler": "dpmpp_2m_karras",
    "eta": 0.0,
    "height": 512,
    "width": 768,
    "model": "/models/sd15",
    "weights": "fe7578cb5e12",
    "numerics_override": None,
    "dtype": "float32",
    "numerics": "compvis",
    "jit_compile": True,
    "tfsd": "0.1.0",
    "tensorflow": "2.21.0",
}
# Texts by stable-diffusion-webui: the example in its parser's description, and ones of versions 1.6 and 1.9 that users published.
FIRST = """girl with an artist's beret, determined, blue eyes, desert scene, ((eyeshadow)), intricate
Negative prompt: ugly, fat, (((deformed))), [blurry], bad anatomy
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b"""
SECOND = """snowy,winter,(snowfall in background:1.2),very snowy,<lora:snowfall:0.8>,
Negative prompt: Unrealistic,
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 712934690, Size: 500x375, Model hash: fe7578cb5e, Model: realistic, \
Denoising strength: 0.34, Clip skip: 2, Lora hashes: "snowfall: f8324b7af7d9", Version: v1.6.0-2-g4afaaf8a"""
THIRD = """a beautiful futuristic city at sunset
Steps: 30, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 4.5, Seed: 1010752383, Size: 832x1216, \
Hashes: {"model": "238ffac319", "vae": "63aeecb90f"}, Model: XL_v51, Version: v1.10.1"""


def test_the_text_is_as_others_write_it():
    assert infotext(RECIPE) == (
        "a cat, sitting: still\nNegative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 7, Size: 768x512, Model hash: fe7578cb5e12, Model: sd15, "
        "Index: 2, Dtype: float32, Numerics: compvis, Jit compile: True, Tensorflow: 2.21.0, Version: tfsd 0.1.0"
    )


def test_values_that_hold_commas_are_quoted():
    text = infotext(RECIPE | {"model": 'one, two: "three"', "guidance_scale": 7.25, "eta": 0.5})
    assert r'Model: "one, two: \"three\"", Eta DDIM: 0.5, Index' in text and "CFG scale: 7.25," in text
    assert parse_infotext(text).pairs["Model"] == 'one, two: "three"'


def test_own_texts_come_back_as_recipes():
    found = foreign_recipe(parse_infotext(infotext(RECIPE | {"model": "sd15", "eta": 0.25})))
    without = {name: value for name, value in RECIPE.items() if value is not None}
    assert found.recipe == without | {"model": "sd15", "eta": 0.25} and not found.unknown and not found.syntax


def test_a_grid_has_the_text_of_its_first_picture():
    text = infotext({"columns": 2, "pictures": [RECIPE, RECIPE | {"prompt": "a dog"}]})
    assert "a dog" not in text and ", Grid pictures: 2, Grid columns: 2," in text
    assert parse_infotext(text).prompt == RECIPE["prompt"]


def test_texts_of_others_are_taken_apart():
    found = parse_infotext(FIRST)
    assert found.prompt.startswith("girl with an artist's beret") and found.prompt.endswith("intricate")
    assert found.negative_prompt == "ugly, fat, (((deformed))), [blurry], bad anatomy"
    assert parse_infotext(SECOND).pairs["Lora hashes"] == "snowfall: f8324b7af7d9"
    assert parse_infotext(THIRD).pairs["Hashes"] == '{"model": "238ffac319", "vae": "63aeecb90f"}'


@pytest.mark.parametrize(
    ("text", "recipe", "unknown", "syntax"),
    [
        (FIRST, (20, "euler_ancestral", 7.0, 965400086, 512, 512), {"Model hash"}, ["weights of words"]),
        (
            SECOND,
            (20, "dpmpp_2m_karras", 7.0, 712934690, 500, 375),
            {"Model hash", "Model", "Denoising strength", "Clip skip", "Lora hashes", "Version"},
            ["extra networks", "weights of words"],
        ),
        (THIRD, (30, "dpmpp_2m_karras", 4.5, 1010752383, 832, 1216), {"Hashes", "Model", "Version"}, []),
    ],
    ids=["first", "1.6", "1.10"],
)
def test_texts_of_others_become_recipes_and_what_is_not_known_is_named(text, recipe, unknown, syntax):
    found = foreign_recipe(parse_infotext(text))
    names = ("num_steps", "sampler", "guidance_scale", "seed", "width", "height")
    assert tuple(found.recipe[name] for name in names) == recipe
    assert set(found.unknown) == unknown and found.syntax == syntax


@pytest.mark.parametrize(
    ("sampler", "schedule", "key"),
    [
        ("DPM++ 2M", None, "dpmpp_2m"),
        ("DPM++ 2M", "Karras", "dpmpp_2m_karras"),
        ("Euler", "Automatic", "euler"),
        ("Euler", "Exponential", None),
        ("DPM++ SDE Karras", None, None),
        ("UniPC", None, "unipc"),
        ("LCM", "Automatic", "lcm"),
        ("DPM++ 3M SDE", "Exponential", None),
        ("DPM2 a", "Automatic", "kdpm2_ancestral_karras"),
        ("DPM++ 2M SDE", "Automatic", None),
        ("DPM++ 2M SDE", "Karras", "dpmpp_2m_sde_karras"),
        ("DPM++ 2M SDE", None, "dpmpp_2m_sde"),
    ],
)
def test_samplers_are_those_that_others_name(sampler, schedule, key):
    kind = f", Schedule type: {schedule}" if schedule else ""
    found = foreign_recipe(parse_infotext(f"a cat\nSteps: 20, Sampler: {sampler}{kind}, Seed: 5"))
    assert found.recipe.get("sampler") == key
    assert ("Sampler" in found.unknown) == (key is None)


@pytest.mark.parametrize(
    ("text", "prompt", "negative", "pairs"),
    [
        ("a cat", "a cat", "", 0),
        ("", "", "", 0),
        ("Negative prompt: dogs\nSteps: 1, Sampler: DDIM, Seed: 1", "", "dogs", 3),
        ("two\nlines\nNegative prompt: and\ntwo\nSteps: 1, Sampler: DDIM, Seed: 1", "two\nlines", "and\ntwo", 3),
        ("note: this, and that", "note: this, and that", "", 0),
        ("a cat\nSeed: 1, Steps: 2", "a cat\nSeed: 1, Steps: 2", "", 0),
    ],
)
def test_texts_without_some_part_are_read(text, prompt, negative, pairs):
    found = parse_infotext(text)
    assert (found.prompt, found.negative_prompt, len(found.pairs)) == (prompt, negative, pairs)


@pytest.mark.parametrize("seed", ["9" * 5000, "1e5", "-", ""])
def test_values_that_are_no_numbers_stay_unknown(seed):
    found = foreign_recipe(parse_infotext(f"a\nSteps: 20, Seed: {seed}, CFG scale: inf, Size: 1x, Sampler: DDIM"))
    assert found.recipe == {"prompt": "a", "negative_prompt": "", "num_steps": 20, "sampler": "ddim"}
    assert set(found.unknown) == {"Seed", "CFG scale", "Size"}


@pytest.mark.parametrize("part", ["a", " ", "a ", 'ab: "', "ab: {", 'ab: "\\', "(", "[", "<lora:", "[a:", "ab:"])
def test_hostile_texts_take_no_time(part):
    text = part * 4_000_000
    started = time.process_time()
    for one in (text[: 4 * 2**20], text[:65536], f"{text[: 2**20]}\nSteps: 1, Sampler: x, Seed: 1"):
        foreign_recipe(parse_infotext(one))
    assert time.process_time() - started < 20  # quadratic time would be hours


# -- in files ----------------------------------------------------------------------------------------------------------

TEXT = "a café\nSteps: 20, Sampler: DDIM, Seed: 5"
WIDE = TEXT + ", Model: 星☃"


def saved_by_pillow(path, text: str, packed: bool):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text, zip=packed)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


@pytest.mark.parametrize("text", [TEXT, WIDE], ids=["latin-1", "wide"])
@pytest.mark.parametrize("packed", [False, True])
def test_texts_are_found_in_png_files_of_others(tmp_path, text, packed):
    saved_by_pillow(tmp_path / "a.png", text, packed)
    assert read_parameters(tmp_path / "a.png") == text


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + WIDE.encode("utf-16-be"),
        b"UNICODE\0" + WIDE.encode("utf-16-le"),
        b"UNICODE\0" + WIDE.encode("utf-16"),
        b"\0" * 8 + WIDE.encode("utf-8"),
    ],
    ids=["big-endian", "little-endian", "marked", "utf-8"],
)
def test_texts_are_found_in_exif_of_others(tmp_path, comment):
    block = tiff([(USER_COMMENT, 7, comment)])
    for data in (jpeg(app1(block)), webp((b"EXIF", block))):
        (tmp_path / "a").write_bytes(data)
        assert read_parameters(tmp_path / "a") == WIDE


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_own_files_have_the_text_too(tmp_path, ending):
    (tmp_path / "a").write_bytes(encode(Image.new("RGB", (8, 8)), RECIPE, ending))
    assert read_parameters(tmp_path / "a") == infotext(RECIPE)


def test_files_without_a_text_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ImageFileError, match="has no recipe. Servers return images without one"):
        read_parameters(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    packed = b"parameters\0\0" + zlib.compress(b" " * 2**25)
    kind = b"zTXt"
    bomb = struct.pack(">I", len(packed)) + kind + packed + struct.pack(">I", zlib.crc32(kind + packed))
    (tmp_path / "a.png").write_bytes(data[:33] + bomb + data[33:])
    with pytest.raises(ImageFileError, match="more than 4194304 bytes"):
        read_parameters(tmp_path / "a.png")
