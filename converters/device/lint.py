"""Finds what phones' runtimes and accelerators refuse in a TFLite file."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tfsd.runtime.private import private

MAX_DIMENSIONS = 4
MAX_BYTES = 2**31 - 1  # size of a file; LiteRT reads larger ones only on some systems
# Builtin operations that LiteRT's GPU accelerator takes: `IrModelBuilder` of its ml_drift delegate. Left out are those whose
# sums overflow in half precision (SUM, CUMSUM), and those that no network here needs.
GPU_DELEGATE_OPS = frozenset(
    "ABS ADD AVERAGE_POOL_2D BATCH_MATMUL CAST CEIL CONCATENATION CONV_2D COS DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV "
    "ELU EQUAL EXP FLOOR FULLY_CONNECTED GATHER GELU GREATER GREATER_EQUAL HARD_SWISH LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND "
    "LOGICAL_NOT LOGICAL_OR LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 POW PRELU "
    "QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR ROUND "
    "RSQRT SELECT SELECT_V2 SIGN SIN SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB "
    "TANH TILE TRANSPOSE TRANSPOSE_CONV UNPACK".split()
)
TYPES = ("FLOAT32", "FLOAT16", "INT32", "INT8", "INT4", "BOOL")
_SPLITS = ("SPLIT", "SPLIT_V", "UNPACK")
_MASKS = ("ShrinkAxisMask", "NewAxisMask", "EllipsisMask")


class Tensor(NamedTuple):
    """An input or output of an operation."""

    name: str
    shape: tuple[int, ...]
    type: str  # with " in blocks" where blocks of a row have scales of their own
    constant: bool  # whether its values are in the file, not computed
    stored: str  # the type before a DEQUANTIZE that makes it, "" if none does
    result: bool  # whether it is an output of the graph
    read: bool  # whether an operation reads it


class Operation(NamedTuple):
    """One operation of a graph."""

    name: str  # of the builtin or custom operation
    custom: bool
    inputs: list[Tensor]
    outputs: list[Tensor]
    options: object | None  # of a STRIDED_SLICE


class Content(NamedTuple):
    """What a file contains."""

    bytes: int
    operations: list[Operation]
    signatures: dict[str, tuple[list[str], list[str]]]  # names of inputs and outputs


def look(path: Path) -> Content:
    """Returns what a TFLite file contains. Raises: `ValueError` for another kind of file."""
    schema = private("ai_edge_litert:schema_py_generated")

    buffer = Path(path).read_bytes()
    if not schema.Model.ModelBufferHasIdentifier(buffer, 0):
        raise ValueError(f"{path} is not a TFLite model.")
    model = schema.Model.GetRootAs(buffer)
    signatures = {}
    for definition in (model.SignatureDefs(i) for i in range(model.SignatureDefsLength())):
        inputs = sorted(definition.Inputs(i).Name().decode() for i in range(definition.InputsLength()))
        outputs = sorted(definition.Outputs(i).Name().decode() for i in range(definition.OutputsLength()))
        signatures[definition.SignatureKey().decode()] = inputs, outputs
    graphs = (model.Subgraphs(i) for i in range(model.SubgraphsLength()))
    return Content(len(buffer), [one for graph in graphs for one in _operations(schema, model, graph)], signatures)


def _operations(schema, model, graph) -> Iterator[Operation]:
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    operators = []
    for operator in (graph.Operators(i) for i in range(graph.OperatorsLength())):
        code = model.OperatorCodes(operator.OpcodeIndex())
        name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs = [operator.Inputs(i) for i in range(operator.InputsLength())]
        inputs = [i for i in inputs if i >= 0]  # an optional one that is not given is -1
        outputs = [operator.Outputs(i) for i in range(operator.OutputsLength())]
        operators.append((operator, code, name, inputs, outputs))
    tensors = _tensors(schema, model, graph, operators)
    for operator, code, name, inputs, outputs in operators:
        custom, options = name == "CUSTOM", None
        if name == "STRIDED_SLICE":
            options = schema.StridedSliceOptions()
            options.Init(operator.BuiltinOptions().Bytes, operator.BuiltinOptions().Pos)
        own = [tensors[i] for i in inputs], [tensors[i] for i in outputs]
        yield Operation(code.CustomCode().decode() if custom else name, custom, *own, options)


def _tensors(schema, model, graph, operators: list[tuple]) -> list[Tensor]:
    types = {value: name for name, value in vars(schema.TensorType).items()}
    own = [graph.Tensors(i) for i in range(graph.TensorsLength())]
    stored = {out: own[given[0]] for _, _, name, given, (out, *_) in operators if name == "DEQUANTIZE"}
    read = {i for _, _, _, inputs, _ in operators for i in inputs}
    results = {graph.Outputs(i) for i in range(graph.OutputsLength())}
    tensors = []
    for i, one in enumerate(own):
        buffer = model.Buffers(one.Buffer())
        constant = buffer.DataLength() > 0 or buffer.Offset() > 1  # the latter in files of more than 2 GB
        shape = tuple(one.ShapeAsNumpy().tolist()) if one.ShapeLength() else ()
        blocks = one.Quantization() and one.Quantization().DetailsType() == schema.QuantizationDetails.BlockwiseQuantization
        type_ = types[one.Type()] + " in blocks" * bool(blocks)
        before = types[stored[i].Type()] if i in stored else ""
        tensors.append(Tensor(one.Name().decode(), shape, type_, constant, before, i in results, i in read))
    return tensors


def dense_layers(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes (outputs, inputs) of the weights of the dense layers in a file, by the names of their outputs."""
    found = (one for one in look(path).operations if one.name == "FULLY_CONNECTED")
    return {one.outputs[0].name: one.inputs[1].shape for one in found}


def lint(path: Path, *, gpu: bool) -> list[str]:
    """Returns a sentence for each problem of a file; an empty list if phones can run it.

    `gpu`: whether it must run on GPUs too, which refuse many operations; CPUs run all builtin ones.
    """
    content = look(path)
    custom = sorted({one.name for one in content.operations if one.custom})
    found = [f"{path.name} needs the custom operation {name}, which phones' runtimes lack." for name in custom]
    if content.bytes > MAX_BYTES:
        found.append(f"{path.name} has {content.bytes / 1e9:.2f} GB; phones map at most {MAX_BYTES / 1e9:.2f} GB.")
    if gpu:
        reasons = Counter(reason for one in content.operations if (reason := _refused(one)))
        found += [f"{path.name} has {count} {reason}." for reason, count in sorted(reasons.items())]
    return found


def _refused(one: Operation) -> str:
    """Returns why GPU accelerators refuse an operation or compute it wrongly; "" if they run it."""
    tensors = [*one.inputs, *one.outputs]
    if one.name not in GPU_DELEGATE_OPS:
        return f"{one.name}, which no GPU takes"
    if any(len(tensor.shape) > MAX_DIMENSIONS for tensor in tensors):
        return f"{one.name} of more than {MAX_DIMENSIONS} dimensions"
    if others := {tensor.type for tensor in tensors} - set(TYPES):
        return f"{one.name} of {', '.join(sorted(others))}, for which GPUs have no kernels"
    if any(tensor.shape == () and not tensor.constant for tensor in one.inputs):
        return f"{one.name} of a number without dimensions that is computed, not constant"
    return _refused_by_kind(one)


def _refused_by_kind(one: Operation) -> str:
    """Returns the same for restrictions of single operations."""
    first, out = one.inputs[0], one.outputs[0]
    if one.name == "MUL" and len(first.shape) == len(one.inputs[1].shape):
        sizes = list(zip(first.shape, one.inputs[1].shape))
        if any(a < b for a, b in sizes) and any(a > b for a, b in sizes):
            return "MUL of two tensors of which neither is the larger one"
    if one.name == "STRIDED_SLICE" and (len(first.shape) < 3 or any(getattr(one.options, mask)() for mask in _MASKS)):
        return "STRIDED_SLICE that adds or drops dimensions, or has fewer than three"
    if one.name in _SPLITS and out.type == "INT32":
        return f"{one.name} of INT32, which GPUs split only as floats"
    if one.name == "GATHER" and len(one.inputs[1].shape) != 1:
        return "GATHER with other than one dimension of indices"
    if one.name == "ADD" and out.result and out.read and not any(tensor.constant for tensor in one.inputs):
        return "ADD whose sum is an output and is used again, of which GPUs of phones return a summand (LiteRT issue 8599)"
    if one.name == "FULLY_CONNECTED" and one.inputs[1].stored in ("INT8", "INT4"):
        return f"FULLY_CONNECTED with weights that a DEQUANTIZE makes of {one.inputs[1].stored}, which no GPU takes"
    return ""
