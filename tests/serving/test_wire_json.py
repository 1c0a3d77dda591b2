import base64
import json

import numpy as np
import pytest
import tensorflow as tf
from test_wire import LATENTS, PLAIN, TEXT, refused, signature

from tfsd.serving.wire import json as wire_json
from tfsd.serving.wire.errors import ServerError

SMALL = signature({"steps": (tf.int32, [None])})


def of_json(document, signature=PLAIN):
    text = document if isinstance(document, (str, bytes)) else json.dumps(document)
    body = wire_json.read_body(text if isinstance(text, bytes) else text.encode())
    return wire_json.arrays_of(body, signature)


def test_rows_and_columns_say_the_same():
    rows, as_rows = of_json({"instances": [{"prompt": "x", "seed": 1}, {"prompt": {"b64": "eQ=="}, "seed": -(2**63)}]})
    columns, as_columns = of_json({"inputs": {"prompt": ["x", "y"], "seed": [1, -(2**63)]}})
    assert as_rows and not as_columns
    for arrays in (rows, columns):
        assert list(arrays["prompt"]) == [b"x", b"y"]
        assert arrays["seed"].dtype == np.int64 and list(arrays["seed"]) == [1, -(2**63)]


def test_a_signature_with_one_input_needs_no_name():
    for document in (
        {"instances": [3, 4]},
        {"inputs": [3, 4]},
        {"instances": [{"steps": 3}, {"steps": 4}]},
        {"inputs": {"steps": [3, 4]}},
    ):
        assert of_json(document, SMALL)[0]["steps"].tolist() == [3, 4]
    prompts = signature({"prompt": (tf.string, [None])})
    assert list(of_json({"instances": [{"b64": "eA"}, "y"]}, prompts)[0]["prompt"]) == [b"x", b"y"]


def test_nested_lists_become_tensors():
    latents = np.arange(32, dtype="float32").reshape(2, 2, 2, 4) / 7
    for document in ({"instances": [{"latents": row.tolist()} for row in latents]}, {"inputs": latents.tolist()}):
        np.testing.assert_array_equal(of_json(document, LATENTS)[0]["latents"], latents)


def test_bytes_that_are_no_utf8_are_passed_on():
    arrays, _ = of_json(b'{"inputs": {"prompt": ["a\xff\xfe"], "seed": [1]}}')
    assert arrays["prompt"][0] == b"a\xff\xfe"
    arrays, _ = of_json({"inputs": {"prompt": [{"b64": base64.b64encode(b"\x80\x00").decode()}], "seed": [1]}})
    assert arrays["prompt"][0] == b"\x80\x00"


def columns(**changes):
    return {"inputs": {"prompt": ["x"], "seed": [1], "guidance_scale": [3]} | changes}


@pytest.mark.parametrize(
    "document, message",
    [
        ("", "JSON Parse error: The document is empty"),
        ("instances = [1, 2]", "JSON Parse error: "),
        ("[1]", "Is not object"),
        ("[" * 100_000, "JSON Parse error"),
        ('{"a":' * 100_000, "JSON Parse error"),
        ({"signature_name": 100}, "'signature_name' key must be a string value."),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"inputs": {}, "instances": []}, "only one of 'inputs' or 'instances' keys to exist"),
        ({"instances": {}}, "Excepting 'instances' to be an list/array"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": [1]}, "instances is a plain list, but expecting list of objects as multiple input tensors required"),
        ({"instances": [{"prompt": "x", "step": 1}]}, "must only have keys: guidance_scale,prompt,seed"),
        ({"instances": [{"prompt": "x"}, {"seed": 1}]}, "element: 1 of 'instances' list. It lacks prompt."),
        (
            {"instances": [{"prompt": "x", "seed": 1, "guidance_scale": 1}, 5]},
            "Expecting object but got list at item 1 of input list",
        ),
        ({"instances": [{}] * 1025}, "'instances' has 1025 rows"),
        ({"inputs": [1]}, "inputs is a plain value/list, but expecting an object"),
        ({"inputs": {"seed": [1]}}, "Missing named input: prompt in 'inputs' object."),
        (columns(step=[1]), "'inputs' has \"step\", but must only have keys: guidance_scale,prompt,seed"),
        (columns(seed=[1.0]), "JSON Value: 1.0 Type: Number is not of expected type: int64"),
        (columns(seed=[True]), "JSON Value: true Type: True is not of expected type: int64"),
        (columns(seed=["1"]), 'JSON Value: "1" Type: String is not of expected type: int64'),
        (columns(seed=[None]), "JSON Value: null Type: Null is not of expected type: int64"),
        (columns(seed=[2**63]), "JSON Value: 9223372036854775808 Type: Number is not of expected type: int64"),
        (columns(seed=[10**4000]), "Type: Number is not of expected type: int64"),
        ('{"inputs": {"seed": [' + "9" * 10_000 + "]}}", "JSON Parse error"),
        (columns(seed=[[1], 2]), "found at incorrect level: 1 in the JSON DOM."),
        (columns(seed=[1, [2]]), "Encountered list at unexpected level: 1"),
        (columns(seed=[[1], [2, 3]]), "Encountered list at unexpected size: 2 at level: 1 expected size: 1"),
        (columns(seed=[[[[[[[[[[1]]]]]]]]]]), "Encountered list at unexpected level: 8"),
        (columns(seed=[[1]]), "seed must have shape [B], one row for each image; got [1, 1]"),
        (columns(seed=[]), "seed must have from 1 to 1024 rows; got 0"),
        (columns(guidance_scale=[float("nan")]), "NaN"),
        (columns(guidance_scale=[float("-inf")]), "-Infinity"),
        ('{"inputs": {"prompt": ["x"], "seed": [1], "guidance_scale": [1e999]}}', "without loss of precision"),
        (columns(guidance_scale=[1e39]), "Cannot convert JSON value: 1e+39 to float without loss of precision."),
        (columns(guidance_scale=[2**24]), "Cannot convert JSON value: 16777216 to float without loss of precision."),
        (columns(guidance_scale=[True]), "Type: True is not of expected type: float"),
        (columns(prompt=[1]), "JSON Value: 1 Type: Number is not of expected type: string"),
        (columns(prompt=[{"b64": 1}]), "not formatted correctly for base64 data"),
        (columns(prompt=[{"b64": "eA", "x": 1}]), "not formatted correctly for base64 data"),
        (columns(prompt=[{"b64": "!"}]), "Unable to base64 decode"),
        (columns(prompt=[{"b64": "e"}]), "Unable to base64 decode"),
        (columns(prompt=[{"b64": "é"}]), "Unable to base64 decode"),
        (columns(prompt=["\ud800"]), "The surrogate pair in string is invalid."),
        (columns(prompt={"b64": "eA"}), "prompt must have shape [B]"),
    ],
)
def test_wrong_json_is_refused_in_tf_servings_words(document, message):
    assert message in refused(of_json, document, TEXT)


def test_int32_is_exact():
    assert of_json({"inputs": [2**31 - 1, -(2**31)]}, SMALL)[0]["steps"].tolist() == [2**31 - 1, -(2**31)]
    assert "not of expected type: int32" in refused(of_json, {"inputs": [2**31]}, SMALL)
    assert "not of expected type: int32" in refused(of_json, {"instances": [-(2**31) - 1]}, SMALL)


def test_refusals_quote_only_the_beginning_of_a_large_value():
    message = refused(of_json, {"inputs": {"prompt": ["x"], "seed": ["y" * 10**6]}})
    assert len(message) < 300


def test_inputs_that_are_missing_are_named_all_at_once():
    for document in ({"instances": [{}]}, {"inputs": {}}):
        assert "prompt, seed" in refused(of_json, document, PLAIN)


def test_rows_may_leave_out_what_has_a_default():
    arrays, _ = of_json({"instances": [{"prompt": "x"}, {"prompt": "y", "guidance_scale": 1}]}, TEXT)
    assert arrays["guidance_scale"].tolist() == [3.0, 1.0]


def test_one_output_goes_without_its_name():
    outputs = {"context": np.array([[1.5, 0.2]], "float32")}
    assert json.loads(wire_json.answer(outputs, rows=True)) == {"predictions": [[1.5, 0.2]]}
    assert json.loads(wire_json.answer(outputs, rows=False)) == {"outputs": [[1.5, 0.2]]}


def test_outputs_named_bytes_are_base64_and_others_text():
    outputs = {"png_bytes": np.array([b"\x89P", b""], object), "name": np.array([b"x", "é".encode()], object)}
    png = [{"b64": "iVA="}, {"b64": ""}]
    assert json.loads(wire_json.answer(outputs, rows=False)) == {"outputs": {"png_bytes": png, "name": ["x", "é"]}}
    assert json.loads(wire_json.answer(outputs, rows=True)) == {
        "predictions": [{"png_bytes": png[0], "name": "x"}, {"png_bytes": png[1], "name": "é"}]
    }


def test_rows_of_different_batches_cannot_be_shown():
    outputs = {"a": np.zeros(2, "int32"), "b": np.zeros(1, "int32")}
    assert refused(wire_json.answer, outputs, True) == "Tensor name: b has inconsistent batch size: 1 expecting: 2"
    assert json.loads(wire_json.answer(outputs, rows=False)) == {"outputs": {"a": [0, 0], "b": [0]}}


def test_floats_are_as_short_as_they_can_be_and_read_as_the_same():
    values = np.array([0.2, 1e-8, 1 / 3, 3.4e38, 16777217.0, -3e-45], "float32")
    text = wire_json.answer({"x": values}, rows=False).decode()
    assert text.startswith('{"outputs":[0.2,1e-08,0.33333334,')
    np.testing.assert_array_equal(np.array(json.loads(text)["outputs"], "float32"), values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [True, False])
def test_numbers_that_json_lacks_are_an_error_that_names_them(value, rows):
    with pytest.raises(ServerError, match="context holds numbers that are not finite") as caught:
        wire_json.answer({"context": np.array([[0.5, value]], "float32")}, rows)
    assert caught.value.code == "INTERNAL"
