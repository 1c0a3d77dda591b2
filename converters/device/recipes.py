"""How the weights of a bundle are stored, and how its parts compute with them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tfsd.specs import ModelSpec


class PartSize(NamedTuple):
    """What a part will need: bytes of its file, and of memory while it runs, with LiteRT's packed copy of the weights."""

    file_bytes: int
    memory_bytes: int


class Recipe(NamedTuple):
    """A way to quantize.

    `file_bytes` and `packed_bytes` per weight, in the file and in LiteRT's own copy; `gate`: the least PSNR in dB that a
    picture may have against the same one in float32; `apply`: sets up a Quantizer of ai_edge_quantizer.
    """

    summary: str
    file_bytes: int
    packed_bytes: int
    gate: float
    apply: Callable | None

    def size(self, weights: int) -> PartSize:
        """Returns what a part of so many weights will need."""
        return PartSize(weights * self.file_bytes, weights * (self.file_bytes + self.packed_bytes))


def _float16(quantizer):
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
    )
    every = qtyping.TFLOperationName.ALL_SUPPORTED
    quantizer.update_quantization_recipe(".*", every, config, AlgorithmName.FLOAT_CASTING)


def _dynamic(quantizer):
    from ai_edge_quantizer import recipe

    quantizer.load_quantization_recipe(recipe.dynamic_wi8_afp32())


def _int8_weights(quantizer):
    from ai_edge_quantizer import recipe

    quantizer.load_quantization_recipe(recipe.weight_only_wi8_afp32())


RECIPES = {
    "none": Recipe("float32 throughout: the same picture as in Python", 4, 4, 45.0, None),
    "float16": Recipe("weights in half precision, products in what the delegate has", 2, 4, 30.0, _float16),
    "dynamic": Recipe("weights int8, activations rounded to int8 at every product: fastest on CPUs", 1, 1, 15.0, _dynamic),
    "int8-weights": Recipe("weights int8, products in float32: smallest at little loss, slow on CPUs", 1, 4, 20.0, _int8_weights),
}
_MODEL_PARTS = {"text_encoder": "text_encoder", "denoiser": "unet", "decoder": "decoder"}


def plan_sizes(spec: ModelSpec) -> dict[str, dict[str, PartSize]]:
    """Returns what each part of a bundle will need by each recipe, before anything is converted: {recipe: {part: size}}."""
    from tfsd.models import parameter_count, variable_shapes

    shapes = variable_shapes(spec, tuple(_MODEL_PARTS.values()))
    counts = {name: parameter_count(shapes[part]) for name, part in _MODEL_PARTS.items()}
    return {key: {name: recipe.size(count) for name, count in counts.items()} for key, recipe in RECIPES.items()}


def quantize_file(source: Path, target: Path, recipe: Recipe):
    """Writes `source`, a float32 TFLite file, with its weights as the recipe has them."""
    import contextlib
    import io

    from ai_edge_quantizer import quantizer

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        made = quantizer.Quantizer(str(source))
        recipe.apply(made)
        target.write_bytes(made.quantize().quantized_model)
