"""TF Serving's JSON: converts the rows or columns of a request to numpy arrays, and arrays of an answer to JSON.

Source: tensorflow/serving, util/json_tensor.cc, for rules and messages. Two differences: NaN and Infinity are refused, and
inputs with a default in the signature may be omitted, as over gRPC; TF Serving's REST API requires all inputs.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import NamedTuple

import numpy as np
from tensorflow.core.framework import types_pb2

from tfsd.serving.wire.errors import ServerError
from tfsd.serving.wire.tensors import FIELDS, MAX_ROWS, default_of, invalid, require_shapes, type_name

MAX_NESTING = 8  # levels of lists in a tensor
_KINDS = {type(None): "Null", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
_INTEGERS = (types_pb2.DT_INT32, types_pb2.DT_INT64, types_pb2.DT_UINT8)
_FLOATS = (types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE)
_LEFT_OUT = object()  # stands for the signature's default in a row


class Body(NamedTuple):
    """The JSON of a predict call, not yet checked against a signature."""

    document: dict
    signature_name: str  # as sent; empty if it was not


def read_body(body: bytes) -> Body:
    """Parses the body of a request.

    Strings keep bytes that are not UTF-8, as in TF Serving; the graph replaces them.
    Raises: `ServerError` INVALID_ARGUMENT if it is not a JSON object, is nested too deep, or has NaN or infinity.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = json.loads(body.decode("utf-8-sig", "surrogateescape"), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
    except RecursionError:
        raise invalid("JSON Parse error: The document is nested too deep") from None
    except ValueError as error:  # NaN, or an integer of thousands of digits
        raise invalid(f"JSON Parse error: {str(error).partition(';')[0]}") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_shown(document)} Is not object")
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(f"JSON Value: {_shown(document)} not formatted correctly. 'signature_name' key must be a string value.")
    return Body(document, name)


def _no_constant(name: str):
    raise ValueError(f"{name} is not accepted as a number")


def arrays_of(body: Body, signature) -> tuple[dict[str, np.ndarray], bool]:
    """Returns the inputs, and whether they were given as rows ("instances") rather than columns ("inputs").

    Raises: `ServerError` INVALID_ARGUMENT if an input is missing, unknown or does not match the signature.
    """
    document = body.document
    rows, columns = "instances" in document, "inputs" in document
    if rows and columns:
        raise invalid("JSON Value: Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
    if not rows and not columns:
        raise invalid("Missing 'inputs' or 'instances' key")
    arrays = _rows(document["instances"], signature) if rows else _columns(document["inputs"], signature)
    require_shapes(signature, arrays)
    return arrays, rows


def _rows(instances, signature) -> dict[str, np.ndarray]:
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {_shown(instances)} Excepting 'instances' to be an list/array")
    if not instances:
        raise invalid("JSON Value: [] No values in 'instances' array")
    if len(instances) > MAX_ROWS:
        raise invalid(f"'instances' has {len(instances)} rows; at most {MAX_ROWS} are accepted.")
    names = sorted(signature.inputs)
    if not _is_object(instances[0]):
        if len(names) > 1:
            raise invalid(
                "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
                "tensorinfo_map"
            )
        for i, item in enumerate(instances):
            if _is_object(item):
                raise invalid(f"Expecting value/list but got object at item {i} of input list")
        return {names[0]: _stacked(instances, names[0], signature, "")}
    for i, item in enumerate(instances):
        if not _is_object(item):
            raise invalid(f"Expecting object but got list at item {i} of input list")
        if set(item) - set(names):
            raise invalid(
                f"Failed to process element: {i} of 'instances' list. JSON object: {_shown(item)} must only have keys: "
                f"{','.join(names)}"
            )
        if missing := _missing(item, signature):
            raise invalid(f"Failed to process element: {i} of 'instances' list. It lacks {missing}.")
    arrays = {}
    for name in names:
        given = [item[name] for item in instances if name in item]
        if given:
            arrays[name] = _stacked([item.get(name, _LEFT_OUT) for item in instances], name, signature, f" key: {name}")
        else:
            arrays[name] = default_of(signature, name)
    return arrays


def _missing(given: Mapping, signature) -> str:
    """Returns the names of all inputs that have neither a value nor a default."""
    return ", ".join(name for name in sorted(signature.inputs) if name not in given and name not in signature.defaults)


def _stacked(values: list, name: str, signature, key: str) -> np.ndarray:
    arrays = []
    for i, value in enumerate(values):
        try:
            left_out = value is _LEFT_OUT
            arrays.append(default_of(signature, name)[0] if left_out else _array(value, signature.inputs[name].dtype))
            if arrays[i].shape != arrays[0].shape:
                raise invalid(f"Expecting shape {_shape(arrays[0])} but got: {_shape(arrays[i])}")
        except ServerError as error:
            raise invalid(
                f"Failed to process element: {i}{key} of 'instances' list. Error: {error.code}: {error.message}"
            ) from None
    return np.stack(arrays)


def _columns(inputs, signature) -> dict[str, np.ndarray]:
    names = sorted(signature.inputs)
    if not _is_object(inputs):
        if len(names) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map"
            )
        return {names[0]: _array(inputs, signature.inputs[names[0]].dtype)}
    if missing := _missing(inputs, signature):
        raise invalid(f"Missing named input: {missing} in 'inputs' object.")
    if unknown := ", ".join(_shown(name) for name in sorted(set(inputs) - set(names))):
        raise invalid(f"'inputs' has {unknown}, but must only have keys: {','.join(names)}")
    return {
        name: _array(inputs[name], signature.inputs[name].dtype) if name in inputs else default_of(signature, name)
        for name in names
    }


def _is_object(value) -> bool:
    """Returns whether a value has inputs by name; an object with the only key "b64" is a string."""
    return isinstance(value, dict) and not (len(value) == 1 and isinstance(value.get("b64"), str))


def _array(value, dtype: int) -> np.ndarray:
    """Converts nested lists to an array; the first items of the lists determine its shape."""
    shape: list[int] = []
    flat = [value]
    while flat and isinstance(flat[0], list):
        size = len(flat[0])
        if len(shape) == MAX_NESTING:
            raise invalid(f"Encountered list at unexpected level: {len(shape)} expected < {MAX_NESTING}")
        for item in flat:
            if not isinstance(item, list):
                raise invalid(f"JSON Value: {_shown(item)} found at incorrect level: {len(shape)} in the JSON DOM.")
            if len(item) != size:
                raise invalid(f"Encountered list at unexpected size: {len(item)} at level: {len(shape)} expected size: {size}")
        flat = list(chain.from_iterable(flat))
        shape.append(size)
    array = np.empty(len(flat), FIELDS[dtype][0])
    array[:] = _leaves(flat, dtype, len(shape))
    return array.reshape(shape)


def _leaves(flat: list, dtype: int, level: int) -> list:
    if dtype == types_pb2.DT_STRING:
        return [_bytes(value, level) for value in flat]
    allowed = {int, float} if dtype in _FLOATS else {int} if dtype in _INTEGERS else {bool}
    if not set(map(type, flat)) <= allowed:
        raise _type_error(next(value for value in flat if type(value) not in allowed), dtype, level)
    if dtype in _INTEGERS and flat:
        bounds = np.iinfo(FIELDS[dtype][0])
        if min(flat) < bounds.min or max(flat) > bounds.max:
            raise _type_error(next(v for v in flat if not bounds.min <= v <= bounds.max), dtype, level)
    if dtype in _FLOATS:
        _require_lossless(flat, dtype)
    return flat


def _require_lossless(flat: list, dtype: int):
    limits = np.finfo(FIELDS[dtype][0])
    whole = 2 ** (limits.nmant + 1) - 1  # all integers up to this one can be represented
    largest = float(limits.max)
    for value in flat:
        if (type(value) is int and abs(value) > whole) or abs(value) > largest:
            raise invalid(f"Cannot convert JSON value: {_shown(value)} to {type_name(dtype)} without loss of precision.")


def _bytes(value, level: int) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None
    if not isinstance(value, dict):
        raise _type_error(value, types_pb2.DT_STRING, level)
    if _is_object(value):
        raise invalid(f"JSON Value: {_shown(value)} not formatted correctly for base64 data")
    try:
        text = "".join(value["b64"].split()).rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def _type_error(value, dtype: int, level: int):
    if isinstance(value, list):
        return invalid(f"Encountered list at unexpected level: {level} expected < {level}")
    kind = str(value) if isinstance(value, bool) else _KINDS[type(value)]
    return invalid(f"JSON Value: {_shown(value)} Type: {kind} is not of expected type: {type_name(dtype)}")


def _shown(value) -> str:
    """Returns the beginning of a value's JSON; encodes only that part of a large value."""
    if isinstance(value, (list, dict)):
        text = ""
        for piece in json.JSONEncoder().iterencode(value):
            text += piece[:100]
            if len(text) > 100:
                break
    else:
        text = json.dumps(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 100 else text[:100] + "..."


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def answer(outputs: Mapping[str, np.ndarray], rows: bool) -> bytes:
    """Returns the JSON of an answer, by row or by column like the request.

    A single output is written without its name, and strings of outputs named `*_bytes` as {"b64": ...}.
    Raises: `ServerError` INVALID_ARGUMENT for outputs with different numbers of rows if the answer is by row; INTERNAL for
    NaN and infinity, which JSON does not have (TF Serving writes them nevertheless, so that few clients can read the answer).
    """
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ServerError("INTERNAL", f"{name} holds numbers that are not finite, for which JSON has no form.")
    values = {name: _values(name, outputs[name]) for name in sorted(outputs)}
    if not rows:
        return _dumps({"outputs": values if len(values) > 1 else next(iter(values.values()))})
    (first, batch), *others = ((name, len(value)) for name, value in values.items())
    for name, other in others:
        if other != batch:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {other} expecting: {batch}")
    if not others:
        return _dumps({"predictions": values[first]})
    return _dumps({"predictions": [{name: value[i] for name, value in values.items()} for i in range(batch)]})


def _dumps(value) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _values(name: str, array: np.ndarray) -> list:
    if array.dtype == np.float32:
        array = array.astype("U32").astype(
            "float64"
        )  # 0.2 rather than 0.20000000298023224: the shortest text with the same value
    if array.dtype != object:
        return array.tolist()
    flat: Iterable = array.ravel()
    as_text = (lambda text: {"b64": base64.b64encode(text).decode()}) if name.endswith("_bytes") else _text
    shaped = np.empty(array.size, object)
    shaped[:] = [as_text(value) for value in flat]
    return shaped.reshape(array.shape).tolist()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
