import numpy as np
import pytest

from tfsd.converters.importers.diffusers import rules_of
from tfsd.converters.importers.rules import CONV, LINEAR, SAME, Layout, Rule, Rules, assign, invert
from tfsd.errors import CheckpointError
from tfsd.models import part_shapes
from tfsd.specs import SD_1_4
from tfsd.storage.h5 import StoredTensor

FOLDERS = {"text_encoder": ("text_encoder",), "unet": ("denoiser",), "vae": ("decoder", "encoder")}


def unread(shape, dtype="float32") -> StoredTensor:
    def read():
        raise AssertionError("a tensor was read before everything matched")

    return StoredTensor(tuple(shape), dtype, read)


def full_size(folder: str):
    """Rules, our shapes and their tensors of SD 1.x, without a single value."""
    shapes = part_shapes(SD_1_4, FOLDERS[folder])
    expected = {f"{part}/{path}": shape for part in shapes for path, shape in shapes[part].items()}
    rules, source = rules_of(folder, SD_1_4), {}
    for path, shape in expected.items():
        name, layout = rules.theirs(path)
        axes = layout.axes or tuple(range(len(shape)))
        source[name] = unread(shape[axes.index(i)] for i in range(len(shape)))
    return rules, expected, source


@pytest.mark.parametrize("folder, count", [("text_encoder", 196), ("unet", 686), ("vae", 248)])
def test_full_size_names_match_one_to_one(folder, count):
    rules, expected, source = full_size(folder)
    assert len(source) == len(expected) == count
    tensors = assign(source, expected, rules, where="x", model="y")
    assert list(tensors) == list(expected)
    assert {path: tensor.shape for path, tensor in tensors.items()} == expected


@pytest.mark.parametrize(
    "folder, name, shape",
    [  # as listed for the published runwayml/stable-diffusion-v1-5
        ("text_encoder", "encoder.layers.11.mlp.fc1.weight", (3072, 768)),
        ("text_encoder", "embeddings.token_embedding.weight", (49408, 768)),
        ("unet", "time_embedding.linear_1.weight", (1280, 320)),
        ("unet", "conv_in.weight", (320, 4, 3, 3)),
        ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight", (2560, 320)),
        ("unet", "down_blocks.2.downsamplers.0.conv.weight", (1280, 1280, 3, 3)),
        ("unet", "mid_block.attentions.0.proj_in.weight", (1280, 1280, 1, 1)),
        ("unet", "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k.weight", (1280, 768)),
        ("unet", "up_blocks.3.resnets.0.conv_shortcut.weight", (320, 960, 1, 1)),
        ("vae", "decoder.up_blocks.2.resnets.0.conv_shortcut.weight", (256, 512, 1, 1)),
        ("vae", "encoder.mid_block.attentions.0.to_out.0.weight", (512, 512)),
        ("vae", "quant_conv.weight", (8, 8, 1, 1)),
    ],
)
def test_published_names_and_shapes_are_known(folder, name, shape):
    assert full_size(folder)[2][name].shape == shape


def _missing(source):
    del source["conv_out.bias"]


def _extra(source):
    source["conv_out.scale"] = unread((4,))


def _wrong(source):
    source["conv_out.bias"] = unread((5,))


def _transposed(source):
    source["conv_out.weight"] = unread((3, 3, 320, 4))


def _integer(source):
    source["conv_out.bias"] = unread((4,), "I64")


@pytest.mark.parametrize(
    "change, message",
    [
        (_missing, r"^file does not fit model: 1 variables left unset \(denoiser/conv_out/bias\)\.$"),
        (_extra, r"^file does not fit model: 1 unknown tensors \(conv_out\.scale\)\.$"),
        (_wrong, r"1 wrong shapes or types \(conv_out\.bias \[5\] for denoiser/conv_out/bias \[4\]\)"),
        (_transposed, r"1 wrong shapes or types \(conv_out\.weight \[3, 3, 320, 4\]"),
        (_integer, r"1 wrong shapes or types \(conv_out\.bias of type I64\)"),
    ],
)
def test_one_wrong_tensor_of_686_is_named(change, message):
    rules, expected, source = full_size("unet")
    change(source)
    with pytest.raises(CheckpointError, match=message):
        assign(source, expected, rules, where="file", model="model")


def test_a_variable_given_twice_is_refused():
    rules = Rules([Rule("a", "x"), Rule("b", "x")])
    with pytest.raises(CheckpointError, match=r"1 tensors given twice \(b\)"):
        assign({"a": unread((1,)), "b": unread((1,))}, {"x": (1,)}, rules, where="file", model="model")


@pytest.mark.parametrize("layout", [SAME, LINEAR, CONV, Layout(ones=(0, 1)), Layout((2, 3, 1, 0), (0, 1))])
def test_layouts_are_undone(layout):
    shape = {2: (3, 4)}.get(len(layout.axes or ()), (1, 1, 3, 4) if layout.axes is None else (3, 4, 1, 1))
    values = np.random.default_rng(0).normal(size=shape)
    ours = layout.apply(values)
    assert ours.shape == layout.shape(shape)
    np.testing.assert_array_equal(layout.undo(ours), values)


def test_a_convolution_becomes_channels_last():
    values = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    assert CONV.apply(values)[4, 6, 2, 1] == values[1, 2, 4, 6]


def test_numbers_in_names_are_kept_apart():
    rules = Rules([Rule("down.{i}.block.{j}.weight", "level{j}/part{i}/kernel", LINEAR)])
    assert rules.ours("down.3.block.12.weight") == ("level12/part3/kernel", LINEAR)
    assert rules.theirs("level12/part3/kernel") == ("down.3.block.12.weight", LINEAR)
    assert rules.ours("down.03.block.1.weight") is None  # or two names would mean one variable
    assert rules.ours("downX3.block.1.weight") is None


def test_a_lopsided_rule_is_refused():
    with pytest.raises(ValueError, match="same placeholders"):
        Rules([Rule("down.{i}", "down{j}")])


def test_exporting_an_unknown_variable_is_refused():
    with pytest.raises(CheckpointError, match="No rule exports the variable y"):
        list(invert([("y", np.zeros(1))], Rules([Rule("a", "x")])))
