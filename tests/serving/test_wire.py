import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from tfsd.serving.wire import tensors
from tfsd.serving.wire.errors import ServerError


def signature(inputs: dict, outputs: dict | None = None, defaults: dict | None = None) -> SignatureDef:
    """A SignatureDef of {name: (type, shape)}, where None is any size."""
    made = SignatureDef()
    for side, infos in ((made.inputs, inputs), (made.outputs, outputs or {"png_bytes": (tf.string, [None])})):
        for name, (dtype, shape) in infos.items():
            side[name].name = f"{name}:0"
            side[name].dtype = dtype.as_datatype_enum
            side[name].tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
    for name, value in (defaults or {}).items():
        made.defaults[name].CopyFrom(tf.make_tensor_proto(value))
    return made


TEXT = signature(
    {"prompt": (tf.string, [None]), "seed": (tf.int64, [None]), "guidance_scale": (tf.float32, [None])},
    defaults={"seed": np.array([7], "int64"), "guidance_scale": np.array([3.0], "float32")},
)
PLAIN = signature({"prompt": (tf.string, [None]), "seed": (tf.int64, [None])})
LATENTS = signature({"latents": (tf.float32, [None, None, None, 4])})


def refused(call, *arguments) -> str:
    with pytest.raises(ServerError) as caught:
        call(*arguments)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert len(caught.value.message) < 1000
    return caught.value.message


@pytest.mark.parametrize("array", [np.arange(6, dtype=kind).reshape(2, 3) for kind in ("float32", "int32", "int64", "uint8")])
def test_tensors_of_a_stock_client_are_read_whichever_way_they_are_written(array):
    by_content = tf.make_tensor_proto(array)
    by_field = TensorProto(dtype=by_content.dtype, tensor_shape=by_content.tensor_shape)
    getattr(by_field, tensors.FIELDS[by_content.dtype][1]).extend(array.ravel().tolist())
    for proto in (by_content, by_field):
        read = tensors.array_of("x", proto)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_strings_keep_every_byte():
    texts = [b"a\x00", "é".encode(), b"\xff\xfe", b""]
    read = tensors.array_of("prompt", tf.make_tensor_proto(texts))
    assert read.dtype == object and list(read) == texts
    lengths = bytes(map(len, texts))  # below 128 a varint is one byte
    content = TensorProto(dtype=tf.string.as_datatype_enum, tensor_content=lengths + b"".join(texts))
    content.tensor_shape.dim.add().size = 4
    assert list(tensors.array_of("prompt", content)) == texts


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", ["float32", "int32", "int64", "uint8", "object"])
def test_answers_are_read_by_tensorflow(kind, large):
    array = np.arange(5000 if large else 6).reshape(2, -1).astype(kind)
    if kind == "object":
        array = np.array([b"a\x00", b"\xff"], object)
    proto = tensors.proto_of(array)
    np.testing.assert_array_equal(tf.make_ndarray(proto), array)
    assert bool(proto.tensor_content) == (array.nbytes > tensors.CONTENT_BYTES and kind != "object")


@pytest.mark.parametrize(
    "content, count",
    [(b"", 1), (b"\x05a", 1), (b"\x80", 1), (b"\xff\xff\xff\xff\xff\xff", 1), (b"\x01a", 2), (b"\x01ab", 1), (b"\x01\x01a", 2)],
)
def test_damaged_strings_are_a_parsing_error(content, count):
    proto = TensorProto(dtype=tf.string.as_datatype_enum, tensor_content=content)
    proto.tensor_shape.dim.add().size = count
    if content:
        assert refused(tensors.array_of, "prompt", proto) == "tensor parsing error: prompt"
    else:
        assert list(tensors.array_of("prompt", proto)) == [b""]  # TensorFlow fills what is left out


def test_values_left_out_repeat_the_last_as_in_tensorflow():
    proto = tf.make_tensor_proto(2.5, shape=[2, 3])
    assert len(proto.float_val) == 1
    np.testing.assert_array_equal(tensors.array_of("x", proto), tf.make_ndarray(proto))


@pytest.mark.parametrize(
    "change",
    [
        lambda proto: proto.tensor_shape.dim.add(),
        lambda proto: proto.tensor_shape.dim.extend([type(proto.tensor_shape.dim[0])(size=1)] * 300),
        lambda proto: setattr(proto.tensor_shape.dim[0], "size", -1),
        lambda proto: setattr(proto.tensor_shape.dim[0], "size", 1),
        lambda proto: setattr(proto.tensor_shape.dim[0], "size", 2**62),
        lambda proto: setattr(proto.tensor_shape, "unknown_rank", True),
        lambda proto: setattr(proto, "tensor_content", b"123"),
    ],
)
def test_shapes_that_do_not_fit_the_values_are_refused(change):
    proto = TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[1, 2])
    proto.tensor_shape.dim.add().size = 2
    change(proto)
    refused(tensors.array_of, "x", proto)


def test_a_small_message_cannot_become_a_large_tensor():
    proto = TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[1])
    for side in (2**15, 2**15, 4):
        proto.tensor_shape.dim.add().size = side
    tracemalloc.start()
    message = refused(tensors.array_of, "latents", proto)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert f"at most {tensors.MAX_VALUES}" in message


def test_missing_inputs_take_the_defaults_of_the_signature():
    arrays = tensors.inputs_of(TEXT, {"prompt": tf.make_tensor_proto(["x"]), "seed": tf.make_tensor_proto([9], tf.int64)})
    assert {name: list(array) for name, array in arrays.items()} == {"prompt": [b"x"], "seed": [9], "guidance_scale": [3.0]}


PROMPT, SEED = tf.make_tensor_proto(["x"]), tf.make_tensor_proto([1], tf.int64)


@pytest.mark.parametrize(
    "which, sent, message",
    [
        (
            PLAIN,
            {"prompt": PROMPT},
            "input size does not match signature: 1!=2 len({prompt}) != len({prompt,seed}). Sent extra: {}. Missing but "
            "required: {seed}.",
        ),
        (
            PLAIN,
            {"prompt": PROMPT, "seed": SEED, "sed": SEED},
            "input size does not match signature: 3!=2 len({prompt,sed,seed}) != len({prompt,seed}). Sent extra: {sed}. Missing "
            "but required: {}.",
        ),
        (TEXT, {"seed": SEED}, "Signature input alias: prompt(feed name: prompt:0) not found in request and no default value"),
        (
            TEXT,
            {"prompt": PROMPT, "sed": SEED},
            "Inputs contains invalid name. Used request inputs: prompt, request input: prompt,sed",
        ),
        (
            PLAIN,
            {"prompt": PROMPT, "seed": tf.make_tensor_proto([1], tf.int32)},
            "Expects seed to be int64 but int32 is provided",
        ),
        (PLAIN, {"prompt": PROMPT, "seed": TensorProto(dtype=999)}, "Expects seed to be int64 but type 999 is provided"),
        (PLAIN, {"prompt": PROMPT, "seed": TensorProto(dtype=108)}, "Expects seed to be int64"),
        (
            PLAIN,
            {"prompt": tf.make_tensor_proto("x"), "seed": SEED},
            "prompt must have shape [B], one row for each image; got []",
        ),
        (PLAIN, {"prompt": tf.make_tensor_proto([["x"]]), "seed": SEED}, "got [1, 1]"),
        (PLAIN, {"prompt": tf.make_tensor_proto([], tf.string), "seed": SEED}, "prompt must have from 1 to 1024 rows; got 0"),
        (PLAIN, {"prompt": tf.make_tensor_proto(["x"] * 3), "seed": tf.make_tensor_proto([1, 2], tf.int64)}, "seed has 2 rows"),
        (
            LATENTS,
            {"latents": tf.zeros([1, 2, 2, 3])},
            "latents must have shape [B,?,?,4], one row for each image; got [1, 2, 2, 3]",
        ),
    ],
)
def test_wrong_inputs_are_named(which, sent, message):
    sent = {name: value if isinstance(value, TensorProto) else tf.make_tensor_proto(value) for name, value in sent.items()}
    assert message in refused(tensors.inputs_of, which, sent)


def test_one_row_counts_for_all():
    arrays = tensors.inputs_of(PLAIN, {"prompt": tf.make_tensor_proto(["x", "y"]), "seed": SEED})
    assert len(arrays["prompt"]) == 2 and len(arrays["seed"]) == 1


def test_output_filter_chooses_and_keeps_the_order():
    both = signature({"prompt": (tf.string, [None])}, {"b": (tf.string, [None]), "a": (tf.int32, [None])})
    assert tensors.output_names(both, []) == ["a", "b"]
    assert tensors.output_names(both, ["b", "a"]) == ["b", "a"]
    assert tensors.output_names(both, ["b"]) == ["b"]
    assert refused(tensors.output_names, both, ["c"]) == (
        "output tensor alias not found in signature: c Outputs expected to be in the set {a,b}."
    )
    assert refused(tensors.output_names, both, ["a", "a"]) == "duplicate output tensor alias: a"
