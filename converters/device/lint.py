"""Looks into a TFLite file for what phones' runtimes and accelerators refuse."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAX_DIMENSIONS = 4
MAX_BYTES = 2**31 - 1  # of a file; LiteRT reads larger ones on some systems only
ACCELERATED = ("denoiser", "decoder")  # what runs on an accelerator; the rest is brief, and tables and integers, for the CPU
# Builtin operations that LiteRT's GPU accelerator takes: `IrModelBuilder` of its ml_drift delegate. Left out are those whose
# sums overflow in half precision (SUM, CUMSUM) and what the networks here cannot need.
TAKEN = frozenset(
    "ABS ADD AVERAGE_POOL_2D BATCH_MATMUL CAST CEIL CONCATENATION CONV_2D COS DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV "
    "ELU EQUAL EXP FLOOR FULLY_CONNECTED GATHER GELU GREATER GREATER_EQUAL HARD_SWISH LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND "
    "LOGICAL_NOT LOGICAL_OR LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 POW PRELU "
    "QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR ROUND "
    "RSQRT SELECT SELECT_V2 SIGN SIN SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB "
    "TANH TILE TRANSPOSE TRANSPOSE_CONV UNPACK".split()
)
TYPES = ("FLOAT32", "FLOAT16", "INT32", "INT8", "INT4", "BOOL")


class Operation(NamedTuple):
    """One operation of a graph; shapes and types of its inputs and outputs, and the name of its first output."""

    name: str  # builtin, or that of a custom operation
    custom: bool
    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]
    types: list[str]
    output: str
    options: object | None  # of a STRIDED_SLICE


class Content(NamedTuple):
    """What a file holds."""

    bytes: int
    operations: list[Operation]
    signatures: dict[str, tuple[list[str], list[str]]]  # names of inputs and outputs


def look(path: Path) -> Content:
    """Returns what a TFLite file holds. Raises: `ValueError` for a file that is none."""
    from ai_edge_litert import schema_py_generated as schema

    buffer = Path(path).read_bytes()
    if not schema.Model.ModelBufferHasIdentifier(buffer, 0):
        raise ValueError(f"{path} is no TFLite model.")
    model = schema.Model.GetRootAs(buffer)
    signatures = {}
    for definition in (model.SignatureDefs(i) for i in range(model.SignatureDefsLength())):
        inputs = sorted(definition.Inputs(i).Name().decode() for i in range(definition.InputsLength()))
        outputs = sorted(definition.Outputs(i).Name().decode() for i in range(definition.OutputsLength()))
        signatures[definition.SignatureKey().decode()] = inputs, outputs
    return Content(len(buffer), list(_operations(schema, model)), signatures)


def _operations(schema, model) -> Iterator[Operation]:
    names, types = ({value: name for name, value in vars(one).items()} for one in (schema.BuiltinOperator, schema.TensorType))
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
        tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
        shapes = [tuple(one.ShapeAsNumpy().tolist()) if one.ShapeLength() else () for one in tensors]
        for operator in (graph.Operators(i) for i in range(graph.OperatorsLength())):
            code = codes[operator.OpcodeIndex()]
            name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            custom = name == "CUSTOM"
            options = None
            if name == "STRIDED_SLICE":
                options = schema.StridedSliceOptions()
                options.Init(operator.BuiltinOptions().Bytes, operator.BuiltinOptions().Pos)
            inputs, outputs = (
                [operator.Inputs(i) for i in range(operator.InputsLength())],
                [operator.Outputs(i) for i in range(operator.OutputsLength())],
            )
            inputs = [i for i in inputs if i >= 0]  # an optional one that is not given is -1
            used = [types[tensors[i].Type()] for i in (*inputs, *outputs)]
            yield Operation(
                code.CustomCode().decode() if custom else name,
                custom,
                [shapes[i] for i in inputs],
                [shapes[i] for i in outputs],
                used,
                tensors[outputs[0]].Name().decode() if outputs else "",
                options,
            )


def dense_layers(path: Path) -> dict[str, tuple[int, int]]:
    """Returns {name of the output: (outputs, inputs)} of the dense layers in a file."""
    found = (one for one in look(path).operations if one.name == "FULLY_CONNECTED")
    return {one.output: one.inputs[1] for one in found}


def lint(path: Path, part: str) -> list[str]:
    """Returns what is wrong with the file of a part, a sentence each; none for a file that accelerators take.

    Of the parts that run on the CPU only builtin operations are asked.
    """
    content = look(path)
    custom = sorted({one.name for one in content.operations if one.custom})
    found = [f"{path.name} needs the custom operation {name}, which phones' runtimes lack." for name in custom]
    if content.bytes > MAX_BYTES:
        found.append(f"{path.name} has {content.bytes / 1e9:.2f} GB; phones map at most {MAX_BYTES / 1e9:.2f} GB.")
    if part in ACCELERATED:
        reasons = Counter(reason for one in content.operations if (reason := _refused(one)))
        found += [f"{path.name} has {count} {reason}." for reason, count in sorted(reasons.items())]
    return found


def _refused(one: Operation) -> str:
    """Returns why GPU accelerators refuse an operation, "" if they take it."""
    shapes = [*one.inputs, *one.outputs]
    if one.name not in TAKEN:
        return f"{one.name}, which no GPU takes"
    if any(len(shape) > MAX_DIMENSIONS for shape in shapes):
        return f"{one.name} of more than {MAX_DIMENSIONS} dimensions"
    if others := set(one.types) - set(TYPES):
        return f"{one.name} of {', '.join(sorted(others))}, for which GPUs have no kernels"
    if one.name == "MUL" and len(one.inputs[0]) == len(one.inputs[1]):
        sizes = list(zip(*one.inputs))
        if any(a < b for a, b in sizes) and any(a > b for a, b in sizes):
            return "MUL of two tensors of which neither is the larger one"
    masks = ("ShrinkAxisMask", "NewAxisMask", "EllipsisMask")
    if one.name == "STRIDED_SLICE" and (len(one.inputs[0]) < 3 or any(getattr(one.options, mask)() for mask in masks)):
        return "STRIDED_SLICE that adds or drops dimensions, or has fewer than three"
    return ""
