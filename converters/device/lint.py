"""Looks into a TFLite file for what phones' accelerators refuse."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

MAX_DIMENSIONS = 4
MAX_BYTES = 2**31 - 1  # of a file; LiteRT reads larger ones on some systems only
REFUSED = {  # builtin operations that GPU delegates do not take, in what runs at every step
    "BROADCAST_TO": "add or multiply with the smaller tensor instead",
    "WHILE": "run the loop outside of the graph",
    "IF": "choose outside of the graph",
    "CALL_ONCE": "export no variables",
}
_PER_STEP = ("denoiser", "decoder", "text_encoder")  # what accelerators run; plans and noise stay on the CPU


class Content(NamedTuple):
    """What a file holds."""

    bytes: int
    operations: Counter  # by their builtin names
    custom: list[str]  # operations that are not builtin, such as Flex
    large: list[str]  # tensors of more than four dimensions
    signatures: dict[str, tuple[list[str], list[str]]]  # names of inputs and outputs


def look(path: Path) -> Content:
    """Returns what a TFLite file holds. Raises: `ValueError` for a file that is none."""
    from ai_edge_litert import schema_py_generated as schema

    buffer = Path(path).read_bytes()
    if not schema.Model.ModelBufferHasIdentifier(buffer, 0):
        raise ValueError(f"{path} is no TFLite model.")
    model = schema.Model.GetRootAs(buffer)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    builtin = [max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in codes]
    operations, custom, large = Counter(), [], []
    for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
        for operator in (graph.Operators(i) for i in range(graph.OperatorsLength())):
            code = operator.OpcodeIndex()
            operations[names[builtin[code]]] += 1
            if names[builtin[code]] == "CUSTOM":
                custom.append(codes[code].CustomCode().decode())
        tensors = (graph.Tensors(i) for i in range(graph.TensorsLength()))
        large += [tensor.Name().decode() for tensor in tensors if tensor.ShapeLength() > MAX_DIMENSIONS]
    signatures = {}
    for definition in (model.SignatureDefs(i) for i in range(model.SignatureDefsLength())):
        inputs = sorted(definition.Inputs(i).Name().decode() for i in range(definition.InputsLength()))
        outputs = sorted(definition.Outputs(i).Name().decode() for i in range(definition.OutputsLength()))
        signatures[definition.SignatureKey().decode()] = inputs, outputs
    return Content(len(buffer), operations, custom, large, signatures)


def lint(path: Path, part: str) -> list[str]:
    """Returns what is wrong with the file of a part, a sentence each; none for a file that accelerators take.

    Plans and noise are made on the CPU, in integers that no accelerator has: of them only builtin operations are asked.
    """
    content = look(path)
    found = [
        f"{path.name} needs the custom operation {name}, which phones' runtimes lack." for name in sorted(set(content.custom))
    ]
    if content.bytes > MAX_BYTES:
        found.append(f"{path.name} has {content.bytes / 1e9:.2f} GB; phones map at most {MAX_BYTES / 1e9:.2f} GB.")
    if part in _PER_STEP:
        found += [f"{path.name} has a tensor of more than {MAX_DIMENSIONS} dimensions: {name}." for name in content.large[:5]]
        refused = {name: hint for name, hint in REFUSED.items() if content.operations[name]}
        found += [
            f"{path.name} has {content.operations[name]} {name}, which no GPU takes; {hint}." for name, hint in refused.items()
        ]
    return found
