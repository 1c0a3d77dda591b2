"""Measures what quantization costs, compared with float32: in each image, each part and each layer."""

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tfsd.runtime.litert import quiet_litert
from tfsd.runtime.private import private

BEST_PSNR = 100.0  # dB; stands for the infinite PSNR of equal images
WORST = 1e6  # relative error that stands for all larger ones, and for NaN
MOST_LAYERS = 8
FINITE = 3.4e38  # stands for infinity, which JSON does not have
LARGEST_HALF, SMALLEST_HALF = 65504.0, 2.0**-14  # float16's largest number, and its smallest with all digits
_LAYER_INPUTS = 4  # of the given inputs; all tensors of a part are kept for each
_HELD = 5 * 2**30  # bytes that all tensors of a part may have together
_KEPT = 2 * 2**30  # bytes of layers' results in float32 that are kept, more only for a single input
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03  # Wang et al. 2004, section III.C

_SCOPES = ("moments", "clip_by_value")  # name scopes of TensorFlow's own functions

Inputs = Sequence[Mapping[str, np.ndarray]]  # arrays by the names of a part's inputs


def compare_images(ours: np.ndarray, theirs: np.ndarray, prompts: Sequence[str]) -> list[dict]:
    """Returns how far each image is from the same one in float32.

    "psnr" in dB, at most `BEST_PSNR`; "ssim", the mean over colour channels; "largest_difference" in levels; "differing",
    the share of values that are not equal.
    Shapes: ours, theirs uint8 [N, H, W, 3].
    Raises: `ValueError` for images of different shapes, or not one prompt for each.
    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity".
    """
    import tensorflow as tf

    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape or ours.dtype != np.uint8 or theirs.dtype != np.uint8 or ours.ndim != 4:
        found = " and ".join(f"{one.dtype} {list(one.shape)}" for one in (ours, theirs))
        raise ValueError(f"ours and theirs must both be uint8 [N, H, W, 3]; got {found}.")
    if len(prompts) != len(ours):
        raise ValueError(f"prompts must be one per image ({len(ours)}); got {len(prompts)}.")
    psnr = tf.image.psnr(ours, theirs, 255).numpy()
    window = min(_WINDOW, *ours.shape[1:3])
    ssim = tf.image.ssim(ours, theirs, 255, filter_size=window, filter_sigma=_SIGMA, k1=_K1, k2=_K2).numpy()
    differences = np.abs(ours.astype(int) - theirs)
    return [
        {
            "prompt": prompt,
            "psnr": min(BEST_PSNR, float(psnr[i])),
            "ssim": float(ssim[i]),
            "largest_difference": int(differences[i].max()),
            "differing": float(np.mean(differences[i] > 0)),
        }
        for i, prompt in enumerate(prompts)
    ]


def compare_parts(
    float32: Mapping[str, Path], quantized: Mapping[str, Path], inputs: Mapping[str, Inputs], *, threads: int = 2
) -> dict[str, dict]:
    """Returns how far the quantized file of each part of `inputs` is from the one in float32.

    Errors are the root mean square of the difference over all inputs, relative to that of float32; `WORST` if there is none.
    "outputs": {name: error}; "relative_error": the largest of them; for colours also "psnr" and "ssim" of the worst image;
    "layers": those with the largest errors in what they return, the worst first, as {"layer", "shape", "relative_error",
    "largest_activation"}; "largest_activation" of any tensor inside, in float32; "over_half" and "under_half": layers with the
    largest value of a tensor that float16 cannot hold, or holds at a loss; "bytes": of both files; "inputs": how many there were.
    A part whose tensors need too much memory at once has no layers, and says so in "layers_left_out".
    """
    return {name: _compare_part(Path(float32[name]), Path(quantized[name]), inputs[name], threads) for name in inputs}


def relative_error(difference: float, reference: float) -> float:
    """Returns the root of the ratio of two sums of squares, between 0 and `WORST`."""
    if difference == 0:
        return 0.0
    error = math.sqrt(difference / reference) if reference > 0 else math.inf
    return error if error < WORST else WORST  # NaN is not less than WORST


def _compare_part(float32: Path, quantized: Path, inputs: Inputs, threads: int) -> dict:
    theirs, ours = (_outputs(path, inputs, threads) for path in (float32, quantized))
    names, images = list(theirs[0]), {}
    if names == ["colours"]:
        before, after = (np.stack([_channels(one["colours"]) for one in outputs]) for outputs in (theirs, ours))
        shown = compare_images(after, before, [""] * len(after))
        images = {"psnr": min(one["psnr"] for one in shown), "ssim": min(one["ssim"] for one in shown)}
        theirs, ours = ([{"colours": image} for image in decoded] for decoded in (before, after))
    errors = {name: _error([one[name] for one in ours], [one[name] for one in theirs]) for name in names}
    sizes = {"float32": float32.stat().st_size, "quantized": quantized.stat().st_size}
    measured = {"relative_error": max(errors.values()), "outputs": errors, **images, "inputs": len(inputs), "bytes": sizes}
    return measured | _compare_layers(float32, quantized, inputs, threads)


def _interpreter(path: Path, threads: int, *, keep: bool = False):
    """Returns a loaded file with the kernels that a phone's CPU has; `keep`: all tensors can be read after a run."""
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Enabling `experimental_preserve_all_tensors`")  # it is what they are for
        return Interpreter(str(path), num_threads=threads, experimental_preserve_all_tensors=keep)


def _outputs(path: Path, inputs: Inputs, threads: int) -> list[dict[str, np.ndarray]]:
    run = _interpreter(path, threads).get_signature_runner()
    with quiet_litert():
        # Copied: what LiteRT returns is its own memory, and the next call writes there.
        return [{name: np.array(value) for name, value in sorted(run(**one).items())} for one in inputs]


def _channels(colours: np.ndarray) -> np.ndarray:
    """Returns int32 ARGB colours [H, W] as an image uint8 [H, W, 3]."""
    return np.stack([colours >> shift & 255 for shift in (16, 8, 0)], axis=-1).astype(np.uint8)


def _error(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    sums = np.sum([_sums(*pair) for pair in zip(ours, theirs)], axis=0)
    return relative_error(*sums)


def _sums(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Returns the sums of squares of the difference and of the reference."""
    theirs = theirs.astype(np.float64)
    return float(np.sum(np.square(ours - theirs))), float(np.sum(np.square(theirs)))


def _compare_layers(float32: Path, quantized: Path, inputs: Inputs, threads: int) -> dict:
    """Returns what `compare_parts` has about layers, from a few inputs spread evenly over all."""
    tensors = _computed(_interpreter(float32, threads, keep=True))
    names = _layers([one["name"] for one in tensors], float32.stem)
    last = {names[one["name"]]: one for one in tensors if one["name"] in names}  # a layer returns what it computes last
    held, kept = sum(map(_bytes, tensors)), sum(map(_bytes, last.values()))
    if held > _HELD:
        return {"layers": [], "layers_left_out": f"their tensors need {held / 1e9:.1f} GB at once"}
    inputs = _evenly(inputs, max(1, min(_LAYER_INPUTS, _KEPT // max(kept, 1))))
    right, largest = _reference(float32, inputs, last, threads)
    sums = _distances(quantized, inputs, {tensor["name"]: layer for layer, tensor in last.items()}, right, threads)
    of_layer: dict[str, float] = {}
    for tensor, value in largest.items():
        layer = names.get(tensor, tensor)
        of_layer[layer] = max(value, of_layer.get(layer, 0.0))
    found = [
        {
            "layer": layer,
            "shape": [int(side) for side in last[layer]["shape"]],
            "relative_error": relative_error(*both),
            "largest_activation": largest[last[layer]["name"]],
        }
        for layer, both in sums.items()
    ]
    return {
        "layers": sorted(found, key=lambda one: -one["relative_error"])[:MOST_LAYERS],
        "largest_activation": max(of_layer.values(), default=0.0),
        "over_half": {layer: value for layer, value in of_layer.items() if not value <= LARGEST_HALF},
        "under_half": {layer: value for layer, value in of_layer.items() if 0 < value < SMALLEST_HALF},
    }


def _computed(interpreter) -> list[dict]:
    """Returns the details of all float tensors that a run computes, in the order in which it computes them."""
    found, given = {}, {one["index"] for one in interpreter.get_input_details()}
    for one in interpreter.get_tensor_details():
        if one["dtype"] == np.float32 and one["name"] and one["index"] not in given and np.all(one["shape"]):
            try:
                interpreter.get_tensor(one["index"])
            except ValueError:  # before memory is allocated, only constants have values
                found[one["name"]] = one
    return list(found.values())


def _reference(path: Path, inputs: Inputs, last: Mapping[str, dict], threads: int):
    """Returns the output of each layer for each input, and the largest absolute value of each tensor."""
    interpreter = _interpreter(path, threads, keep=True)
    tensors = _computed(interpreter)
    run, right = interpreter.get_signature_runner(), []
    largest: dict[str, float] = {}
    for one in inputs:
        run(**one)
        for tensor in tensors:
            value = min(float(np.abs(interpreter.get_tensor(tensor["index"])).max()), FINITE)
            largest[tensor["name"]] = max(largest.get(tensor["name"], 0.0), value)
        right.append({layer: interpreter.get_tensor(tensor["index"]) for layer, tensor in last.items()})
    return right, largest


def _distances(path: Path, inputs: Inputs, layers: Mapping[str, str], right: list[dict], threads: int) -> dict[str, np.ndarray]:
    """Returns the sums of squares, as `_sums`, of each layer whose tensor is also in this file."""
    get_tensor_data = private("ai_edge_quantizer.utils.tfl_interpreter_utils:get_tensor_data")
    interpreter = _interpreter(path, threads, keep=True)
    tensors = {layers[one["name"]]: one for one in interpreter.get_tensor_details() if one["name"] in layers}
    run = interpreter.get_signature_runner()
    sums: dict[str, np.ndarray] = {}
    for one, expected in zip(inputs, right):
        run(**one)
        for layer, tensor in tensors.items():
            if list(tensor["shape"]) == list(expected[layer].shape):
                pair = np.array(_sums(get_tensor_data(interpreter, tensor), expected[layer]))
                sums[layer] = sums.get(layer, 0) + pair
    return sums


def _layers(tensors: Sequence[str], part: str) -> dict[str, str]:
    """Returns the path of the layer that each tensor belongs to, as in variable names; other tensors are left out.

    A tensor is named after operations that it fuses, `a_1/b_1/Operation;a_1/b_1/Other`; tracing adds the numbers.
    """
    own = {}
    for tensor in tensors:
        path = tensor.split(";")[0].split("/")[:-1]
        path = path[1:] if path and re.fullmatch(rf"{part}(_[0-9]+)?", path[0]) else path
        known = [segment for segment in path if re.fullmatch(r"[a-z][a-z0-9_]*", segment) and segment not in _SCOPES]
        if known:
            own[tensor] = "/".join(known)
    short = {path: re.sub(r"_[0-9]+(?=/|$)", "", path) for path in own.values()}
    times = Counter(short.values())  # layers whose paths differ in these numbers alone keep them
    return {tensor: path if times[short[path]] > 1 else short[path] for tensor, path in own.items()}


def _bytes(tensor: dict) -> int:
    return 4 * int(np.prod(tensor["shape"], dtype=np.int64))


def _evenly(inputs: Inputs, count: int) -> Inputs:
    chosen = np.linspace(0, len(inputs) - 1, min(count, len(inputs))).round().astype(int)
    return [inputs[i] for i in chosen]
