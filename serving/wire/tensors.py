"""Tensors of requests and answers: TensorProto to numpy and back, with checks against a signature and limits."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow.core.framework.tensor_pb2 import TensorProto

from tfsd.serving.wire.errors import ServerError

MAX_ROWS = 1024  # more than any export allows; checked first
MAX_VALUES = 2**22  # of a tensor that has fewer values than its shape, so that the last one is repeated
CONTENT_BYTES = 4096  # larger tensors are sent as tensor_content, which is a hundred times faster than a field of values

# Type -> (numpy's name, field of TensorProto).
FIELDS = {
    types_pb2.DT_FLOAT: ("float32", "float_val"),
    types_pb2.DT_DOUBLE: ("float64", "double_val"),
    types_pb2.DT_INT32: ("int32", "int_val"),
    types_pb2.DT_INT64: ("int64", "int64_val"),
    types_pb2.DT_UINT8: ("uint8", "int_val"),
    types_pb2.DT_BOOL: ("bool", "bool_val"),
    types_pb2.DT_STRING: ("object", "string_val"),
}
_TYPES = {name: dtype for dtype, (name, _) in FIELDS.items()}


def invalid(message: str) -> ServerError:
    """Returns the error for a wrong request."""
    return ServerError("INVALID_ARGUMENT", message)


def type_name(dtype: int) -> str:
    """Returns TensorFlow's name of a type: `float` for DT_FLOAT."""
    return types_pb2.DataType.Name(dtype)[3:].lower() if dtype in types_pb2.DataType.values() else f"type {dtype}"


def inputs_of(signature, protos: Mapping[str, TensorProto]) -> dict[str, np.ndarray]:
    """Returns the inputs of a gRPC request, with the signature's defaults for missing ones.

    Raises: `ServerError` INVALID_ARGUMENT if TF Serving or its graph would refuse them, with TF Serving's messages.
    """
    _require_names(signature, protos)
    arrays = {}
    for name, info in signature.inputs.items():
        if name not in protos:
            arrays[name] = default_of(signature, name)
            continue
        proto = protos[name]
        if proto.dtype != info.dtype:
            raise invalid(f"Expects {name} to be {type_name(info.dtype)} but {type_name(proto.dtype)} is provided.")
        arrays[name] = array_of(name, proto)
    require_shapes(signature, arrays)
    return arrays


def default_of(signature, name: str) -> np.ndarray:
    """Returns the default of an input, one row."""
    return array_of(name, signature.defaults[name])


def _require_names(signature, protos: Mapping[str, TensorProto]):
    sent, wanted = set(protos), set(signature.inputs)
    if len(sent) > len(wanted) or (len(sent) < len(wanted) and not signature.defaults):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({_set(sent)}) != len({_set(wanted)}). "
            f"Sent extra: {_set(sent - wanted)}. Missing but required: {_set(wanted - sent)}."
        )
    if missing := sorted(wanted - sent - set(signature.defaults)):
        feeds = ", ".join(f"{name}(feed name: {signature.inputs[name].name})" for name in missing)
        raise invalid(
            f"Signature input alias: {feeds} not found in request and no default value provided. Inputs expected to be in the "
            f"request {_set(sent)}, or default input alias set: {_list(signature.defaults)}"
        )
    if sent - wanted:
        raise invalid(f"Inputs contains invalid name. Used request inputs: {_list(sent & wanted)}, request input: {_list(sent)}")


def _list(names: Iterable[str]) -> str:
    return ",".join(sorted(name[:60] for name in names))


def _set(names: Iterable[str]) -> str:
    return "{" + _list(names) + "}"


def require_shapes(signature, arrays: Mapping[str, np.ndarray]):
    """Raises: `ServerError` INVALID_ARGUMENT if an input has a wrong shape, or neither one row nor as many as the others."""
    rows = 1
    for name, array in arrays.items():
        wanted = [dim.size for dim in signature.inputs[name].tensor_shape.dim]
        if array.ndim != len(wanted) or any(want not in (-1, got) for want, got in zip(wanted, array.shape)):
            shown = ",".join(["B", *("?" if side < 0 else str(side) for side in wanted[1:])])
            raise invalid(f"{name} must have shape [{shown}], one row for each image; got {list(array.shape)}.")
        if not 1 <= len(array) <= MAX_ROWS:
            raise invalid(f"{name} must have from 1 to {MAX_ROWS} rows; got {len(array)}.")
        rows = max(rows, len(array))
    for name, array in arrays.items():
        if len(array) not in (1, rows):
            raise invalid(f"{name} has {len(array)} rows where others have {rows}. Give one row, or one for each image.")


def array_of(name: str, proto: TensorProto) -> np.ndarray:
    """Returns a tensor's values; strings as an array of bytes.

    As in TensorFlow, missing values at the end repeat the last one, up to `MAX_VALUES`. Tensors with all values are limited
    only by the size of messages.
    Raises: `ServerError` INVALID_ARGUMENT for a tensor whose shape and values do not match.
    """
    dims = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or len(dims) > 8 or any(side < 0 for side in dims):
        raise invalid(f"tensor parsing error: {name}")
    size = math.prod(dims)
    dtype, field = FIELDS[proto.dtype]
    content = proto.tensor_content
    if size > max(MAX_VALUES, len(content), len(getattr(proto, field))):
        raise invalid(
            f"{name} has {size} values; at most {MAX_VALUES} are accepted if not all of them are sent. Send fewer rows."
        )
    if content and dtype == "object":
        return _object_array(_strings(name, content, size)).reshape(dims)
    if content:
        if len(content) != size * np.dtype(dtype).itemsize:
            raise invalid(f"tensor parsing error: {name}")
        return np.frombuffer(content, dtype).reshape(dims)
    values = getattr(proto, field)
    if len(values) > size:
        raise invalid(f"tensor parsing error: {name}")
    try:
        array = _object_array(values) if dtype == "object" else np.array(values, dtype)
    except OverflowError:  # int_val of 300 for uint8
        raise invalid(f"tensor parsing error: {name}") from None
    if len(array) < size:
        last = array[-1] if len(array) else (b"" if dtype == "object" else 0)
        array = np.concatenate([array, np.full(size - len(array), last, array.dtype)])
    return array.reshape(dims)


def _object_array(values) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _strings(name: str, content: bytes, count: int) -> list[bytes]:
    """Parses the strings of a tensor_content: all lengths as varints, then all bytes."""
    lengths, at = [], 0
    for _ in range(min(count, len(content))):
        length, shift = 0, 0
        while True:
            if at >= len(content) or shift > 28:
                raise invalid(f"tensor parsing error: {name}")
            byte = content[at]
            length |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                break
        lengths.append(length)
    if len(lengths) != count or at + sum(lengths) != len(content):
        raise invalid(f"tensor parsing error: {name}")
    texts = []
    for length in lengths:
        texts.append(content[at : at + length])
        at += length
    return texts


def output_names(signature, wanted: Iterable[str]) -> list[str]:
    """Returns the outputs to answer with: those of a request's output filter, or all if it is empty.

    Raises: `ServerError` INVALID_ARGUMENT for an unknown output, or one that is listed twice.
    """
    names: list[str] = []
    for name in wanted:
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name[:60]} Outputs expected to be in the set "
                f"{_set(signature.outputs)}."
            )
        if name in names:
            raise invalid(f"duplicate output tensor alias: {name}")
        names.append(name)
    return names or sorted(signature.outputs)


def proto_of(array: np.ndarray) -> TensorProto:
    """Returns the tensor of an output: large ones as tensor_content, strings and small ones in the field of their type."""
    dtype = _TYPES[array.dtype.name]
    proto = TensorProto(dtype=dtype)
    for side in array.shape:
        proto.tensor_shape.dim.add().size = side
    if dtype != types_pb2.DT_STRING and array.nbytes > CONTENT_BYTES:
        proto.tensor_content = array.tobytes()
    else:
        getattr(proto, FIELDS[dtype][1]).extend(array.ravel().tolist())
    return proto
