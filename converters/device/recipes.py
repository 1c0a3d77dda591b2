"""Recipes for quantization: how the weights of a bundle are stored, and how its parts compute with them.

ai_edge_quantizer quantizes; a recipe says which layers get what. Later rules of a recipe override earlier ones.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfsd.converters.device.convert import CONVERSION_BYTES
from tfsd.errors import CheckpointError
from tfsd.runtime.litert import quiet_litert
from tfsd.runtime.private import private
from tfsd.specs import ModelSpec

BLOCK = 32  # weights that share a scale in four bits
CALIBRATION_CALLS = 40  # of a part, spread over the trajectories
# Layers that read what no norm bounds, by the names of their outputs: a few of their inputs are many times the others, so one
# range for all calls, which "int8" needs, costs most there. They keep a range of each call's own.
UNBOUNDED = r"(dense[01]_\d+/MatMul|embed_|conv_in_|conv_out_|skip_|downsample|upsample|proj_out_|feed_forward|/out_|key_|value_)"
# What may run on GPUs. `sampling` has tables and whole numbers of 32 bits; the text encoder runs once, looks up tables, and
# squares numbers that half precision cannot hold.
GPU_PARTS = ("denoiser", "decoder")
CHECKED = (
    "GPU: the denoiser and the decoder of tiny, whole, by LiteRT 2.3.0's accelerator over WebGPU and SwiftShader, a Vulkan in "
    "software, which computes in float32. CPU: LiteRT 2.3.0 on x86-64."
)
_CHUNK_BYTES = 2**25
_MODEL_PARTS = ("text_encoder", "denoiser", "decoder")


class PartSize(NamedTuple):
    """The bytes that a part needs: its file, its memory while it runs (with LiteRT's packed copy), and while it is converted."""

    file_bytes: int
    memory_bytes: int
    conversion_bytes: int


class QuantizationRecipe(NamedTuple):
    """How a bundle is quantized.

    - `name`: the key in `RECIPES`.
    - `dense_bytes`, `conv_bytes`: bytes of a weight in the file; `packed_bytes`: its bytes in LiteRT's own copy.
    - `gate`: the least PSNR in dB that an image may have against the same one in float32.
    - `points`: how many prompts in a hundred may be followed less often, for the included model.
    - `rules`: for each part the function that sets up its Quantizer, given that and the part's file; others stay as they are.
    - `calibrated`: whether the ranges of activations are measured first.
    - `no_gpu`: why no part may run on a GPU; "" if `GPU_PARTS` passed there whole, as `CHECKED` says.
    """

    name: str
    summary: str
    dense_bytes: float
    conv_bytes: float
    packed_bytes: float
    gate: float
    points: int
    rules: dict[str, Callable]
    calibrated: bool = False
    no_gpu: str = ""

    def accelerators(self, part: str) -> tuple[str, ...]:
        """Returns the accelerators that may run a part, the fastest first."""
        return ("gpu", "cpu") if part in GPU_PARTS and not self.no_gpu else ("cpu",)

    def size(self, dense: int, others: int, tables: int) -> PartSize:
        """Returns what a part with so many weights in dense layers, others, and in tables, which stay float32, will need."""
        weights = dense + others + tables
        file = int(dense * self.dense_bytes + others * self.conv_bytes + 4 * tables)
        return PartSize(file, int(file + self.packed_bytes * (dense + others)), CONVERSION_BYTES * weights)


def _weights(bits: int, granularity: str, dtype: str = "INT"):
    qtyping = private("ai_edge_quantizer:qtyping")
    return qtyping.TensorQuantizationConfig(
        num_bits=bits, granularity=qtyping.QuantGranularity[granularity], dtype=qtyping.TensorDataType[dtype]
    )


def _update(quantizer, pattern: str, operation: str, weights, activations=None, *, products: str = "INTEGER", by: str = ""):
    """Adds a rule for the layers whose output's name matches `pattern`: an operation, and what its numbers become."""
    qtyping = private("ai_edge_quantizer:qtyping")
    algorithms = private("ai_edge_quantizer.algorithm_manager:AlgorithmName")
    config = qtyping.OpQuantizationConfig(
        activation_tensor_config=activations,
        weight_tensor_config=weights,
        compute_precision=qtyping.ComputePrecision[products],
        explicit_dequantize=products == "FLOAT",
    )
    operation = qtyping.TFLOperationName[operation]
    quantizer.update_quantization_recipe(pattern, operation, config, algorithms[by or "MIN_MAX_UNIFORM_QUANT"])


def _float16(quantizer, file: Path):
    _update(quantizer, ".*", "ALL_SUPPORTED", _weights(16, "TENSORWISE", "FLOAT"), products="FLOAT", by="FLOAT_CASTING")


def _dynamic(quantizer, file: Path):
    quantizer.load_quantization_recipe(private("ai_edge_quantizer:recipe").dynamic_wi8_afp32())


def _int8_weights(quantizer, file: Path):
    quantizer.load_quantization_recipe(private("ai_edge_quantizer:recipe").weight_only_wi8_afp32())


def _int4(quantizer, file: Path):
    from tfsd.converters.device.lint import dense_layers

    _dynamic(quantizer, file)
    _update(quantizer, ".*", "FULLY_CONNECTED", _weights(4, f"BLOCKWISE_{BLOCK}"))
    for name, (_, inputs) in dense_layers(file).items():
        if inputs % BLOCK:
            _update(quantizer, re.escape(name), "FULLY_CONNECTED", _weights(8, "CHANNELWISE"))


def _int8(quantizer, file: Path):
    qtyping = private("ai_edge_quantizer:qtyping")
    activations = qtyping.TensorQuantizationConfig(num_bits=8, symmetric=False, granularity=qtyping.QuantGranularity.TENSORWISE)
    _dynamic(quantizer, file)
    for operation in ("FULLY_CONNECTED", "CONV_2D"):
        _update(quantizer, ".*", operation, _weights(8, "CHANNELWISE"), activations)
        _update(quantizer, f".*{UNBOUNDED}.*", operation, _weights(8, "CHANNELWISE"))


def _all_parts(rule: Callable, **others: Callable) -> dict[str, Callable]:
    return dict.fromkeys(_MODEL_PARTS, rule) | others


_RECIPES = (
    QuantizationRecipe(
        "none",
        "float32 throughout: the same image as in Python",
        dense_bytes=4, conv_bytes=4, packed_bytes=4, gate=45.0, points=0, rules={},
    ),
    QuantizationRecipe(
        "float16",
        "weights in half precision, products in what the delegate has",
        dense_bytes=2, conv_bytes=2, packed_bytes=4, gate=30.0, points=2, rules=_all_parts(_float16),
    ),
    QuantizationRecipe(
        "dynamic",
        "weights int8; activations int8 at every product on CPUs, where it is the fastest, floats on GPUs",
        dense_bytes=1, conv_bytes=1, packed_bytes=1, gate=15.0, points=5, rules=_all_parts(_dynamic),
    ),
    QuantizationRecipe(
        "int8-weights",
        "weights int8, products in float32: least loss in 8 bits on CPUs, but slow there and large in their memory",
        dense_bytes=1, conv_bytes=1, packed_bytes=8, gate=20.0, points=2, rules=_all_parts(_int8_weights),
        no_gpu="LiteRT's GPU accelerator cannot compile dense layers that convert weights to floats; use dynamic there",
    ),
    # The text encoder runs once and is small beside the denoiser, and of its activations single ones are hundreds of times
    # the others: neither one range for all nor four bits are worth it there.
    QuantizationRecipe(
        "int8",
        "weights int8, activations int8 in ranges measured before, for accelerators without float",
        dense_bytes=1, conv_bytes=1, packed_bytes=1, gate=15.0, points=5,
        rules=_all_parts(_int8, text_encoder=_dynamic), calibrated=True,
    ),
    QuantizationRecipe(
        "int4",
        "the denoiser's dense layers in 4 bits, all else as dynamic: smallest",
        dense_bytes=0.5625, conv_bytes=1, packed_bytes=0.5625, gate=12.0, points=10, rules=_all_parts(_dynamic, denoiser=_int4),
        no_gpu="LiteRT's GPU accelerator crashes on 4-bit weights with one scale per block",
    ),
)  # fmt: skip
RECIPES = {recipe.name: recipe for recipe in _RECIPES}


def known_recipe(name: str, path: Path) -> QuantizationRecipe:
    """Returns the recipe that the manifest at `path` names. Raises: `CheckpointError` if this tfsd does not have it."""
    if name not in RECIPES:
        raise CheckpointError(
            f"{path} has quantize {name[:30]!r}; this tfsd knows {', '.join(RECIPES)}. Export it again, or use a newer tfsd."
        )
    return RECIPES[name]


def plan_sizes(spec: ModelSpec) -> dict[str, dict[str, PartSize]]:
    """Returns the sizes of each part with each recipe, before anything is converted: {recipe: {part: size}}."""
    from tfsd.models import parameter_count, part_shapes

    shapes = part_shapes(spec, _MODEL_PARTS)
    plans: dict[str, dict[str, PartSize]] = {}
    for key, recipe in RECIPES.items():
        plans[key] = {}
        for name in _MODEL_PARTS:
            own, total = recipe, parameter_count(shapes[name])
            tables = parameter_count({path: shape for path, shape in shapes[name].items() if path.startswith("embeddings/")})
            dense = parameter_count({path: shape for path, shape in shapes[name].items() if len(shape) == 2}) - tables
            if recipe.rules.get(name) is _dynamic:
                own = RECIPES["dynamic"]
            plans[key][name] = own.size(dense, total - dense - tables, tables)
    return plans


def quantize_file(source: Path, target: Path, part: str, recipe: QuantizationRecipe, calls: list[dict]):
    """Quantizes `source`, a part's float32 TFLite file, by a recipe; `calls`: inputs of the part, to measure ranges.

    Raises: `ValueError`, `RuntimeError` of the quantizer.
    """
    from ai_edge_quantizer import quantizer

    from tfsd.converters.device.lint import look

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), _large_kernels():
        made = quantizer.Quantizer(str(source))
        recipe.rules[part](made, source)
        ranges = None
        if made.need_calibration:
            (signature,) = look(source).signatures
            # Measured inside LiteRT, which keeps no tensors: those of one layer may have a gigabyte.
            mode = private("ai_edge_quantizer.calibrator:CalibrationMode").CALIBRATION_PROFILER_BASED
            with quiet_litert():
                ranges = made.calibrate({signature: calls}, num_threads=2, mode=mode)
        target.write_bytes(made.quantize(ranges).quantized_model)


@contextlib.contextmanager
def _large_kernels() -> Iterator[None]:
    """Lets the quantizer take kernels of more than 32 MiB.

    It processes those in chunks, for which it reshapes the kernel [outputs, h, w, inputs] to a matrix, but not the scales
    [outputs, 1, 1, 1]: in ai_edge_quantizer 0.10 that raises. Here it gets a few outputs at a time.
    """
    library = private("ai_edge_quantizer.algorithms.uniform_quantize:uniform_quantize_tensor")
    quantize = private("ai_edge_quantizer.algorithms.uniform_quantize.uniform_quantize_tensor:uniform_quantize")

    def in_slices(tensor, parameters, is_blockwise_quant=False):
        if tensor.ndim < 3 or tensor.nbytes <= _CHUNK_BYTES or len(parameters.scale) != len(tensor) or is_blockwise_quant:
            return quantize(tensor, parameters, is_blockwise_quant)
        rows = max(1, _CHUNK_BYTES // tensor[0].nbytes)
        cuts = [slice(i, i + rows) for i in range(0, len(tensor), rows)]
        own = [replace(parameters, scale=parameters.scale[cut], zero_point=parameters.zero_point[cut]) for cut in cuts]
        return np.concatenate([quantize(tensor[cut], part) for cut, part in zip(cuts, own)])

    library.uniform_quantize = in_slices
    try:
        yield
    finally:
        library.uniform_quantize = quantize
