import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from tfsd.converters import convert
from tfsd.converters.importers.kerascv import FILES, export, file_order, open_folder
from tfsd.errors import CheckpointError
from tfsd.models import part_shapes
from tfsd.specs import SD_1_4, CLIPSpec, ModelSpec, UNetSpec, VAESpec
from tfsd.storage.model_folders import load_parts, load_spec, named_variables

LAYOUTS = Path(__file__).parents[1] / "data" / "kerascv_h5_layout"

SMALL = ModelSpec(
    name="small",
    text=(CLIPSpec(vocabulary=40, length=8, width=8, layers=2, heads=2, mlp_width=16),),
    denoiser=UNetSpec(channels=(8, 16), residuals=1, attention=(True, False), heads=(2, 2), context_width=8, groups=4),
    vae=VAESpec(channels=(8, 16), residuals=1, groups=4),
)


def layout_of(part) -> list[tuple[str, list]]:
    """(layer, [[weight name, shape, dtype], ...]) in the order of the published file."""
    layers = json.loads((LAYOUTS / FILES.get(part, part)).with_suffix(".json").read_text())["layers"]
    return [(layer["name"], layer["weights"]) for layer in layers]


def published_file(path: Path, part: str):
    """Writes a file with the names, order and full shapes of the published one, but no values: a few hundred KB."""
    with h5py.File(path, "w") as file:
        layers = layout_of(part)
        file.attrs["layer_names"] = [layer.encode() for layer, _ in layers]
        for layer, weights in layers:
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name, *_ in weights]
            for name, shape, dtype in weights:
                group.create_dataset(name, shape=shape, dtype=dtype, chunks=tuple(min(n, 64) for n in shape))


def _layers(file):
    return list(file.attrs["layer_names"].astype(str))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    for part, name in FILES.items():
        published_file(folder / name, part)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small model in KerasCV's four files, and its values by part and path."""
    folder, random = tmp_path_factory.mktemp("small"), np.random.default_rng(0)
    tensors = {
        part: {path: random.normal(size=shape).astype("float32") for path, shape in shapes.items()}
        for part, shapes in part_shapes(SMALL).items()
    }
    for part, name in FILES.items():
        export(folder / name, part, SMALL, tensors[part])
    return folder, tensors


@pytest.fixture
def copy(small, tmp_path):
    """A copy of the small model's files that a test may damage."""
    for name in FILES.values():
        (tmp_path / name).write_bytes((small[0] / name).read_bytes())
    return tmp_path


def test_the_published_files_fit_at_full_size(published):
    """Names, order and shapes alone: reading a value of these files would fail."""
    with open_folder(published) as (spec, parts):
        assert spec == SD_1_4
        assert {part: len(tensors) for part, tensors in parts.items()} == {
            "text_encoder": 196,
            "denoiser": 686,
            "decoder": 140,
            "encoder": 108,
        }
        with pytest.raises(CheckpointError, match="has a shape but no values"):
            parts["decoder"]["conv_in/bias"].read()


@pytest.mark.parametrize("part", FILES)
def test_each_variable_meets_the_layer_of_its_kind(part):
    """Shapes cannot tell norms of one width, nor self- from cross-attention in the deeper levels; KerasCV's names can."""
    weights = [name for _, group in layout_of(part) for name, *_ in group]
    order = file_order(part, SD_1_4, part_shapes(SD_1_4)[part])
    assert len(weights) == len(order)
    kinds = {
        "feed_forward/dense1": "geglu",
        "block0/attention1/": "cross_attention",
        "block0/attention2/": "cross_attention",
        "residual": "res",
        "upsample": "up" if part == "denoiser" else "padded_conv2d",
        "downsample": "padded_conv2d",
        "time": "dense",
        "embed/": "dense",
        "proj_": "padded_conv2d",
        "embeddings": "clip_embedding",
        "middle/attention/": "attention_block" if part in ("decoder", "encoder") else "spatial_transformer",
        "/attention0/": "spatial_transformer",
        "/attention1/norm": "spatial_transformer",
        "block11/": "clip_encoder_layer_11/",
    }
    for name, path in zip(weights, order):
        leaf = path.rpartition("/")[2]
        assert name.endswith(f"/{'embeddings' if leaf in ('tokens', 'positions') else leaf}:0"), (name, path)
        for mark, kind in kinds.items():
            assert mark not in path or kind in name, (name, path)


def test_every_tensor_survives_the_round_trip(small, tmp_path):
    folder, tensors = small
    model = convert(folder, tmp_path / "model", spec=SMALL, numerics="kerascv")
    spec = load_spec(model)
    parts = load_parts(model, spec)
    assert spec.denoiser.gelu == "gelu_tanh" and spec.rounding == "truncate" and spec.name == "model"
    for part, expected in tensors.items():
        got = named_variables(parts[part])
        assert got.keys() == expected.keys()
        for path in expected:
            np.testing.assert_array_equal(got[path], expected[path], err_msg=f"{part}/{path}")


def test_layer_names_and_their_grouping_do_not_matter(small, tmp_path):
    """Numbers in Keras' names depend on what the process had made before, so nothing may hang on them."""
    folder, tensors = small
    for part, name in FILES.items():
        with h5py.File(folder / name) as file:
            leaves = [file[layer].attrs["weight_names"].astype(str)[0] for layer in _layers(file)]
        layers = [("input_7", []), ("all", [f"res_block_{900 - i}/x_{i}/{leaf}" for i, leaf in enumerate(leaves)]), ("end", [])]
        export(tmp_path / name, part, SMALL, tensors[part], layers)
    with open_folder(tmp_path, spec=SMALL) as (_, parts):
        for part, expected in tensors.items():
            for path, values in expected.items():
                np.testing.assert_array_equal(parts[part][path].read(), values, err_msg=f"{part}/{path}")


def test_a_whole_saved_model_is_read_as_its_weights(copy):
    with h5py.File(copy / FILES["decoder"], "r+") as file:
        names, group = list(file), file.create_group("model_weights")
        for name in names:
            file.move(name, f"model_weights/{name}")
        group.attrs["layer_names"] = file.attrs["layer_names"]
        del file.attrs["layer_names"]
    with open_folder(copy, spec=SMALL) as (_, parts):
        assert len(parts["decoder"]) == len(part_shapes(SMALL)["decoder"])


def test_long_lists_of_names_may_be_split(copy):
    with h5py.File(copy / FILES["denoiser"], "r+") as file:
        names = list(file.attrs["layer_names"])
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:100], names[100:]
    with open_folder(copy, spec=SMALL) as (_, parts):
        assert len(parts["denoiser"]) == len(part_shapes(SMALL)["denoiser"])


def test_the_image_encoder_may_be_absent(copy):
    (copy / FILES["encoder"]).unlink()
    with open_folder(copy, spec=SMALL) as (_, parts):
        assert set(parts) == {"text_encoder", "denoiser", "decoder"}
    (copy / FILES["decoder"]).unlink()
    with pytest.raises(CheckpointError, match=r"kcv_decoder\.h5 does not exist"), open_folder(copy, spec=SMALL):
        pass


def _missing(file):
    file.attrs["layer_names"] = [name.encode() for name in _layers(file)[:-1]]


def _extra(file):
    file.create_group("more").attrs["weight_names"] = [b"bias:0"]
    file["more/bias:0"] = np.zeros(3, "float32")
    file.attrs["layer_names"] = [name.encode() for name in [*_layers(file), "more"]]


def _swapped(file):
    names = _layers(file)
    file.attrs["layer_names"] = [name.encode() for name in [names[1], names[0], *names[2:]]]


def _wrong_shape(file):
    last = _layers(file)[-1]
    del file[last]["bias:0"]
    file[last]["bias:0"] = np.zeros(77, "float32")


def _no_weight(file):
    del file[_layers(file)[-1]]["bias:0"]


def _link(file):
    last = _layers(file)[-1]
    del file[last]["bias:0"]
    file[last]["bias:0"] = h5py.ExternalLink("/etc/hostname", "/x")


def _through_a_tensor(file):
    file[_layers(file)[-1]].attrs["weight_names"] = [b"bias:0/more"]


def _numbers(file):
    file.attrs["layer_names"] = 7


def _no_names(file):
    del file.attrs["layer_names"]


@pytest.mark.parametrize(
    "change, message",
    [
        (_missing, r"does not fit the decoder of small: 1 variables left unset \(conv_out/bias\)"),
        (_extra, r"1 unknown tensors \(70\.bias\)"),
        (_swapped, r"2 unknown tensors .*; 2 variables left unset \(post_quant/kernel, post_quant/bias\)"),
        (_wrong_shape, r"wrong shapes or types \(69\.bias \[77\] for conv_out/bias \[3\]\)"),
        (_no_weight, r"'bias:0' is missing or a link"),
        (_link, r"'bias:0' is missing or a link"),
        (_through_a_tensor, r"'bias:0/more' leads through a tensor"),
        (_numbers, r"layer_names of / is damaged"),
        (_no_names, r"is not a weights file of Keras 2"),
    ],
)
def test_a_file_of_another_shape_is_refused_and_nothing_is_written(copy, change, message):
    with h5py.File(copy / FILES["decoder"], "r+") as file:
        change(file)
    with pytest.raises(CheckpointError, match=message):
        convert(copy, copy / "out" / "model", spec=SMALL)
    assert not (copy / "out").exists()


def test_the_files_of_another_model_are_refused(published):
    with pytest.raises(CheckpointError, match=r"kcv_encoder\.h5 does not fit the text_encoder of small"):
        with open_folder(published, spec=SMALL):
            pass


@pytest.mark.parametrize("keep", [0, 50, 5000])
def test_a_truncated_file_is_one_line(copy, keep):
    path = copy / FILES["denoiser"]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"kcv_diffusion_model\.h5 is damaged or not an HDF5 file") as caught:
        with open_folder(copy, spec=SMALL):
            pass
    assert "\n" not in str(caught.value)


VERSION_2 = {"text_encoder": "text_encoder_v2_1", "denoiser": "diffusion_model_v2_1"}
OF_VERSION_2 = r" is of KerasCV's Stable Diffusion 2\.1; of KerasCV only 1\.x is read\. Convert a diffusers folder"


@pytest.mark.parametrize("part", VERSION_2)
def test_a_file_of_version_2_under_the_name_of_version_1_is_named(published, tmp_path, part):
    for other, name in FILES.items():
        if other != part:
            (tmp_path / name).symlink_to(published / name)
    published_file(tmp_path / FILES[part], VERSION_2[part])
    with pytest.raises(CheckpointError, match=rf"{FILES[part]}{OF_VERSION_2}"), open_folder(tmp_path):
        pass


@pytest.mark.parametrize("given", ["", "diffusion_model_v2_1.h5"])
def test_a_folder_of_version_2_is_named(tmp_path, given):
    """The VAE's files have the names of version 1."""
    for name in ("text_encoder_v2_1.h5", "diffusion_model_v2_1.h5", "kcv_decoder.h5", "vae_encoder.h5"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=rf"text_encoder_v2_1\.h5{OF_VERSION_2}"):
        convert(tmp_path / given, tmp_path / "model")
