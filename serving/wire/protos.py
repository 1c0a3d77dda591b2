"""The messages of TF Serving's API that a client needs, without an import of TensorFlow.

`tensorflow_serving.apis` has all messages, but also imports TensorFlow, which takes seconds. The same messages are described
here, with the same names and numbers, in a separate pool, so that they do not conflict with TensorFlow's if both are loaded.
Enumerations are numbers, and fields that a client never reads are omitted; neither changes the bytes on the wire.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "float": _FIELD.TYPE_FLOAT,
    "bool": _FIELD.TYPE_BOOL,
    "string": _FIELD.TYPE_STRING,
    "bytes": _FIELD.TYPE_BYTES,
}
# Message -> field -> (number, type): "[T]" is a list, "{T}" a map from strings, a capital letter another message.
_MESSAGES = {
    "Int64Value": {"value": (1, "int64")},
    "Any": {"type_url": (1, "string"), "value": (2, "bytes")},
    "Dim": {"size": (1, "int64"), "name": (2, "string")},
    "TensorShapeProto": {"dim": (2, "[Dim]"), "unknown_rank": (3, "bool")},
    "TensorProto": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "TensorShapeProto"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "[float]"),
        "int_val": (7, "[int32]"),
        "string_val": (8, "[bytes]"),
        "int64_val": (10, "[int64]"),
    },
    "TensorInfo": {"name": (1, "string"), "dtype": (2, "int32"), "tensor_shape": (3, "TensorShapeProto")},
    "SignatureDef": {
        "inputs": (1, "{TensorInfo}"),
        "outputs": (2, "{TensorInfo}"),
        "method_name": (3, "string"),
        "defaults": (4, "{TensorProto}"),
    },
    "SignatureDefMap": {"signature_def": (1, "{SignatureDef}")},
    "ModelSpec": {
        "name": (1, "string"),
        "version": (2, "Int64Value"),
        "signature_name": (3, "string"),
        "version_label": (4, "string"),
    },
    "PredictRequest": {"model_spec": (1, "ModelSpec"), "inputs": (2, "{TensorProto}"), "output_filter": (3, "[string]")},
    "PredictResponse": {"outputs": (1, "{TensorProto}"), "model_spec": (2, "ModelSpec")},
    "GetModelMetadataRequest": {"model_spec": (1, "ModelSpec"), "metadata_field": (2, "[string]")},
    "GetModelMetadataResponse": {"model_spec": (1, "ModelSpec"), "metadata": (2, "{Any}")},
}


def _add_field(message, name: str, number: int, kind: str):
    """Adds a field to the description of a message. A map is a list of messages with a key and a value."""
    plain = kind.strip("[]{}")
    label = _FIELD.LABEL_OPTIONAL if kind == plain else _FIELD.LABEL_REPEATED
    if kind.startswith("{"):
        entry = message.nested_type.add(name=name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, plain)
        plain = f"{message.name}.{entry.name}"
    field = message.field.add(name=name, number=number, label=label)
    if plain in _TYPES:
        field.type = _TYPES[plain]
    else:
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".tfsd.wire.{plain}"


def _classes() -> dict[str, type]:
    file = descriptor_pb2.FileDescriptorProto(name="tfsd/wire.proto", package="tfsd.wire", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(message, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tfsd.wire.{name}")) for name in _MESSAGES}


_MADE = _classes()
GetModelMetadataRequest = _MADE["GetModelMetadataRequest"]
GetModelMetadataResponse = _MADE["GetModelMetadataResponse"]
ModelSpec = _MADE["ModelSpec"]
PredictRequest = _MADE["PredictRequest"]
PredictResponse = _MADE["PredictResponse"]
SignatureDefMap = _MADE["SignatureDefMap"]
TensorProto = _MADE["TensorProto"]
