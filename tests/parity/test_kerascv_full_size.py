"""Stable Diffusion 1.x at full size against KerasCV 0.9, weight for weight and picture for picture.

There are no trained weights here: a rule fills the files that KerasCV published, and KerasCV was run with the same.
See tests/data/kerascv_v1/README.md. Takes about 10 GB of memory, 9 GB of disk and some minutes.
"""

import json
import shutil
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from tfsd.api import load
from tfsd.converters import convert
from tfsd.converters.importers.kerascv import FILES
from tfsd.noise import normal_noise
from tfsd.storage.model_folders import load_parts, load_spec

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "kerascv_v1" / "cases.json").read_text())
CHECK = json.loads((DATA / "kerascv_v1" / "weights_check.json").read_text())
TAGS = {"text_encoder": "text_encoder", "denoiser": "diffusion_model", "decoder": "decoder", "encoder": "image_encoder"}

CONTEXT = 1e-5  # of the largest value; KerasCV's own versions differ by 4e-6 absolute at 3.7, 1e-3 would be asked for
OUTPUT = 1e-4  # of the largest value, for one pass of the U-Net; 1e-3 would be asked for
LEVELS = 2  # of an image's 255: truncation turns a difference in the 6th digit into 1

pytestmark = pytest.mark.full_size


def filled(tag: str, index: int, leaf: str, shape: tuple[int, ...]) -> np.ndarray:
    """The rule that made the weights of the recorded run."""
    key = f"{tag}:{index}:{leaf}:{'x'.join(map(str, shape))}"
    values = np.random.RandomState(zlib.crc32(key.encode())).random_sample(int(np.prod(shape))) * 2.0 - 1.0
    if leaf == "gamma":
        values = 1.0 + 0.1 * values
    elif leaf in ("beta", "bias"):
        values = 0.1 * values
    else:
        values = 0.5 * values if leaf == "embeddings" else values * np.sqrt(3.0 / np.prod(shape[:-1]))
    return values.reshape(shape).astype("float32")


def write_published_file(path: Path, tag: str) -> str:
    """Writes one file as Keras 2 did, with its groups, names and order; returns the CRC-32 of its weights."""
    layers = json.loads((DATA / "kerascv_h5_layout" / f"{path.stem}.json").read_text())["layers"]
    index, crc = 0, 0
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer["name"].encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer["name"])
            group.attrs["weight_names"] = [name.encode() for name, _, _ in layer["weights"]]
            for name, shape, _ in layer["weights"]:
                values = filled(tag, index, name.rpartition("/")[2].removesuffix(":0"), tuple(shape))
                group.create_dataset(name, data=values)
                index, crc = index + 1, zlib.crc32(values.tobytes(), crc)
    return f"{crc:08x}"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The model folder, and the CRC of every published file it was made from."""
    base = tmp_path_factory.mktemp("full_size")
    published = base / "published"
    published.mkdir()
    checksums = {part: write_published_file(published / FILES[part], tag) for part, tag in TAGS.items()}
    yield convert(published, base / "sd", numerics="kerascv"), checksums
    shutil.rmtree(base)


@pytest.fixture(scope="module")
def model(converted):
    return load(converted[0], jit_compile=False)


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request):
    return CASES[request.param], np.load(DATA / "kerascv_v1" / f"{request.param}.npz")


def assert_close(value, expected, tolerance: float):
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("part", TAGS)
def test_weights_are_those_of_the_recorded_run(part, converted):
    assert converted[1][part] == CHECK[TAGS[part]]["crc32_of_all_float32_bytes_in_order"]


def test_contexts_are_those_of_kerascv(model, case):
    arguments, recorded = case
    for prompt, name in ((arguments["prompt"], "context"), (arguments["negative_prompt"] or "", "uncond_context")):
        assert_close(model.encode_text(prompt).reshape(-1)[::8], recorded[name], CONTEXT)


def test_noise_of_a_seed_is_that_of_kerascv():
    recorded = np.load(DATA / "kerascv_v1" / "seed_128.npz")["noise"]
    noise = normal_noise([1234, 1234], [0, 1], 0, recorded.shape[1:])
    np.testing.assert_allclose(noise, recorded, rtol=0, atol=2e-6)  # sin, cos and log of two libraries


def test_outputs_of_the_unet_are_those_of_kerascv(model, case):
    arguments, recorded = case
    unet = model.pipeline.functions.parts.denoiser
    inputs = [recorded["noise"], *recorded["latent_after"][:-1]]
    for prompt, name in ((arguments["prompt"], "eps_cond"), (arguments["negative_prompt"] or "", "eps_uncond")):
        context = np.repeat(model.encode_text(prompt), 2, axis=0)
        for i, timestep in enumerate(recorded["timesteps"].astype("float32")):
            assert_close(unet(inputs[i], np.array([timestep]), context), recorded[name][i], OUTPUT)


def test_images_are_those_of_kerascv(model, case):
    arguments, recorded = case
    options = {"num_steps": arguments["num_steps"], "guidance_scale": arguments["unconditional_guidance_scale"]}
    if arguments["seed"] is not None:
        images = model.text_to_image(arguments["prompt"], 2, arguments["seed"], height=128, width=128, **options)
    else:
        context = model.encode_text(arguments["prompt"])
        negative = arguments["negative_prompt"]
        images = model.generate_image(context, negative, batch_size=2, diffusion_noise=recorded["noise"], **options)
    difference = np.abs(np.asarray(images).astype(int) - recorded["image"])
    assert difference.max() <= LEVELS
    assert np.mean(difference > 0) < 1e-3  # KerasCV moves 4e-4 of them itself when its noise moves by one ulp


def test_image_encoder_is_that_of_kerascv(converted):
    recorded = np.load(DATA / "kerascv_v1" / "seed_128.npz")
    spec = load_spec(converted[0])
    encoder = load_parts(converted[0], spec, parts=("encoder",))["encoder"]
    mean = encoder(recorded["encoder_image"].astype("float32"))[..., : spec.vae.latent_channels]
    assert_close(mean * spec.vae.scale, recorded["encoder_latent"], OUTPUT)
