"""The client's own messages are the stock ones, byte for byte, and come without TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.wrappers_pb2 import Int64Value
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2

from tfsd.serving.client.requests import (
    ModelInputs,
    answer_of,
    filled,
    inputs_of,
    model_spec,
    predict_requests,
    request_columns,
    tensor_of,
    values_of,
)
from tfsd.serving.client.sync import Client
from tfsd.serving.wire import protos
from tfsd.serving.wire.errors import ServerError

STOCK = {
    "ModelSpec": model_pb2.ModelSpec,
    "PredictRequest": predict_pb2.PredictRequest,
    "PredictResponse": predict_pb2.PredictResponse,
    "GetModelMetadataRequest": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelMetadataResponse": get_model_metadata_pb2.GetModelMetadataResponse,
    "SignatureDefMap": get_model_metadata_pb2.SignatureDefMap,
    "TensorProto": tensor_pb2.TensorProto,
    "SignatureDef": meta_graph_pb2.SignatureDef,
}
DEFAULTS = {"num_steps": 4, "guidance_scale": 3.0, "sampler": "ddim", "height": 8, "width": 16}


def fields(descriptor, wanted, path=""):
    """Yields name, number, repetition and wire type of all fields that are `wanted`, nested ones too."""
    for field in descriptor.fields:
        if field.name not in wanted.fields_by_name:
            continue
        kind = field.TYPE_INT32 if field.type == field.TYPE_ENUM else field.type
        yield path + field.name, field.number, field.is_repeated, kind
        if field.message_type is not None:
            yield from fields(field.message_type, wanted.fields_by_name[field.name].message_type, f"{path}{field.name}.")


@pytest.mark.parametrize("name", STOCK)
def test_every_field_has_its_stock_number_and_type(name):
    own = protos._MADE[name].DESCRIPTOR
    assert set(fields(own, own)) == set(fields(STOCK[name].DESCRIPTOR, own))


def stock_tensor(values, dtype):
    """Written value by value, where `tf.make_tensor_proto` may pack the same into `tensor_content`."""
    tensor = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    tensor.tensor_shape.dim.add(size=len(values))
    field = {tf.string: "string_val", tf.int64: "int64_val", tf.int32: "int_val", tf.float32: "float_val"}[dtype]
    getattr(tensor, field).extend(values)
    return tensor


def test_predict_request_is_the_stock_one_byte_for_byte():
    given = columns(["a star", "ein Stern \u2603"], 1, [-5, 2**63 - 1], options())
    own = predict_requests(filled(given, ModelInputs(frozenset(), DEFAULTS)), model_spec("tiny", 3, "text_to_png"), 8)[0]
    stock = predict_pb2.PredictRequest()
    stock.model_spec.CopyFrom(model_pb2.ModelSpec(name="tiny", version=Int64Value(value=3), signature_name="text_to_png"))
    inputs = {
        "prompt": ([b"a star", "ein Stern \u2603".encode()], tf.string),
        "negative_prompt": ([b"red", b"red"], tf.string),
        "seed": ([-5, 2**63 - 1], tf.int64),
        "index": ([2, 2], tf.int32),
        "guidance_scale": ([0.1, 100.0], tf.float32),
        "num_steps": ([4, 4], tf.int32),
        "sampler": ([b"ddim", b"ddim"], tf.string),
        "height": ([8, 8], tf.int32),
        "width": ([16, 16], tf.int32),
    }
    for name, (values, dtype) in inputs.items():
        stock.inputs[name].CopyFrom(stock_tensor(values, dtype))
    assert own.SerializeToString(deterministic=True) == stock.SerializeToString(deterministic=True)


def columns(*arguments):
    return request_columns(Client.text_to_image, *arguments)


def options():
    return {"negative_prompt": "red", "guidance_scale": [0.1, 100.0], "index": 2}


def test_label_takes_the_place_of_a_version():
    stock = model_pb2.ModelSpec(name="tiny", version_label="stable", signature_name="x")
    assert model_spec("tiny", "stable", "x").SerializeToString() == stock.SerializeToString()


@pytest.mark.parametrize(
    "values, kind",
    [([b"a", b"", b"\xff\0"], "string"), ([1, -2, 2**31 - 1], "int32"), ([-(2**63), 5], "int64"), ([0.5, 3.0], "float32")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_are_read_as_tensorflow_writes_them_and_the_other_way_round(values, kind):
    dtype = object if kind == "string" else kind
    stock = tf.make_tensor_proto(np.array(values, dtype), kind)
    assert values_of(protos.TensorProto.FromString(stock.SerializeToString()), len(values), kind) == values
    back = tf.make_ndarray(tensor_pb2.TensorProto.FromString(tensor_of(values, kind).SerializeToString()))
    assert back.tolist() == values and back.dtype == (object if kind == "string" else kind)


def test_equal_values_that_are_written_once_are_all_read():
    stock = tensor_pb2.TensorProto(dtype=tf.int32.as_datatype_enum, int_val=[7])
    stock.tensor_shape.dim.add(size=3)
    assert values_of(protos.TensorProto.FromString(stock.SerializeToString()), 3, "int32") == [7, 7, 7]


@pytest.mark.parametrize(
    "tensor",
    [
        tensor_of([1, 2], "int32"),
        tensor_of([1], "int64"),
        protos.TensorProto(dtype=3),
        protos.TensorProto(dtype=3, tensor_content=b"abc", tensor_shape={"dim": [{"size": 1}]}),
        protos.TensorProto(dtype=3, int_val=[1, 2], tensor_shape={"dim": [{"size": 1}]}),
        protos.TensorProto(dtype=3, int_val=[1], tensor_shape={"dim": [{"size": -1}]}),
        protos.TensorProto(dtype=3, int_val=[1], tensor_shape={"dim": [{"size": 2**62}]}),
    ],
    ids=["two", "int64", "empty", "odd bytes", "too many", "negative", "huge"],
)
def test_tensor_of_other_values_than_wanted_is_an_error(tensor):
    with pytest.raises(ServerError) as caught:
        values_of(tensor, 1, "int32")
    assert caught.value.code == "INTERNAL"


def stock_metadata(defaults=()):
    signatures = get_model_metadata_pb2.SignatureDefMap()
    signatures.signature_def["text_to_png"].method_name = "tensorflow/serving/predict"
    for name, value in dict(defaults).items():
        kind = {"guidance_scale": "float32", "sampler": "string"}.get(name, "int32")
        signatures.signature_def["text_to_png"].defaults[name].CopyFrom(tf.make_tensor_proto([value], kind))
    stock = get_model_metadata_pb2.GetModelMetadataResponse()
    stock.metadata["signature_def"].Pack(signatures)
    return protos.GetModelMetadataResponse.FromString(stock.SerializeToString())


def test_defaults_are_those_of_the_signature():
    defaults = DEFAULTS | {"guidance_scale": 0.1}
    assert inputs_of(stock_metadata(defaults), "tiny", "text_to_png") == ModelInputs(frozenset(), defaults)


def test_model_of_other_signatures_says_which():
    with pytest.raises(ServerError, match="no signature 'other' but text_to_png") as caught:
        inputs_of(stock_metadata(), "tiny", "other")
    assert caught.value.code == "FAILED_PRECONDITION"


def test_argument_without_a_value_of_the_model_must_be_given():
    with pytest.raises(ValueError, match="guidance_scale must be given"):
        filled(columns("a", 1, 1, {}), ModelInputs(frozenset(), {"sampler": "ddim"}))


def test_input_that_an_older_export_lacks_is_left_out_until_it_is_given():
    older = ModelInputs(frozenset({"prompt", "seed", *DEFAULTS}), DEFAULTS)
    assert set(filled(columns("a", 1, 1, {}), ModelInputs(older.names | {"index"}, DEFAULTS))) == {*older.names, "index"}
    with pytest.raises(ValueError, match="negative_prompt must be left out: the server's model has no such input. Export it"):
        filled(columns("a", 1, 1, {"negative_prompt": "red"}), older)


@pytest.mark.parametrize("batch, size, sizes", [(1, 8, [1]), (8, 8, [8]), (9, 8, [4, 5]), (64, 8, [8] * 8), (5, 1, [1] * 5)])
def test_large_batches_are_split_evenly_and_in_order(batch, size, sizes):
    given = filled(columns("a", batch, 1, options() | {"guidance_scale": 1.0}), ModelInputs(frozenset(), DEFAULTS))
    requests = predict_requests(given, model_spec("tiny", None), size)
    indices = [list(one.inputs["index"].int_val) for one in requests]
    assert [len(one) for one in indices] == sizes
    assert sum(indices, []) == list(range(2, 2 + batch))


def test_answer_that_lacks_an_output_says_what_it_has():
    response = protos.PredictResponse(outputs={"images": tensor_of([1], "int32")})
    with pytest.raises(ServerError, match="no png_bytes but images"):
        answer_of(response.SerializeToString(), 1)


def test_client_does_not_import_tensorflow():
    heavy = "{'tensorflow', 'keras', 'tensorflow_serving'}"
    script = f"import sys, tfsd.serving.client.sync, tfsd.serving.client.aio; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"
