"""Builds the parts of a bundle: the pipeline as four graphs, each of which an app loads, runs and closes separately.

Every signature has fixed shapes and serves one image, with tensors of at most four dimensions. The app contains the loop over
steps, so that it can show progress and stop; the graphs contain the sampler, the guidance and the noise.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from tfsd.converters.saved_model.plan_bank import PlanBank
from tfsd.noise import normal_noise
from tfsd.pipeline import Pipeline
from tfsd.samplers.rows import HISTORY, ROW_SIZE
from tfsd.samplers.step import step, unpack

OPAQUE = 255 * 2**24 - 2**32  # alpha 255 in an int32 ARGB colour, as Android's Bitmap takes them


class Signature:
    """A function of tensors that returns {output's name: tensor}, and its inputs.

    TensorFlow traces `function` when it is first used, and keeps the graph: saving a part, describing it in a manifest and
    running it use the same one.
    """

    def __init__(self, call: Callable[..., dict], inputs: list[tf.TensorSpec]):
        self.inputs = inputs
        self.function = tf.function(call, input_signature=inputs, autograph=False)


class DevicePart(NamedTuple):
    """The content of one file: functions, and the variables that they use."""

    weights: list
    signatures: dict[str, Signature]

    @property
    def weight_count(self) -> int:
        """How many numbers the variables hold."""
        return sum(int(weight.shape.num_elements()) for weight in self.weights)


def build_parts(pipeline: Pipeline, size: tuple[int, int], max_steps: int) -> dict[str, DevicePart]:
    """Returns the parts, by the names of their files, for images of `size` (height, width)."""
    shape = pipeline.latent_shape(*size)
    return {
        "sampling": _sampling(pipeline, shape, max_steps),
        "text_encoder": _text_encoder(pipeline),
        "denoiser": _denoiser(pipeline, shape),
        "decoder": _decoder(pipeline, shape, size),
    }


def save_part(part: DevicePart, folder: Path):
    """Writes a part as a SavedModel, from which TFLite takes the names of inputs, outputs and signatures."""
    module = tf.Module()
    module.weights = part.weights  # without them the conversion succeeds, but the file has wrong weights
    # Graphs that are traced already: saving would trace functions again.
    graphs = {name: signature.function.get_concrete_function() for name, signature in part.signatures.items()}
    tf.saved_model.save(module, str(folder), signatures=graphs)


def _numbers(*names: str) -> list[tf.TensorSpec]:
    return [tf.TensorSpec([1], tf.int32, name=name) for name in names]


def _floats(**shapes: tuple[int, ...]) -> list[tf.TensorSpec]:
    return [tf.TensorSpec(shape, tf.float32, name=name) for name, shape in shapes.items()]


def _sampling(pipeline: Pipeline, shape: tuple[int, int, int], max_steps: int) -> DevicePart:
    bank, denoiser = PlanBank(pipeline.spec.schedule, max_steps), pipeline.functions.parts.denoiser

    def plan(sampler, num_steps, step):
        """One row of a plan, the number of its rows, and the factor of the initial noise."""
        rows, count, scale = bank.look_up(sampler, num_steps, step)
        row = tf.reshape(rows, [ROW_SIZE])
        features = denoiser.timestep_features(row[:1])
        return {"row": row, "timestep_features": features, "count": count, "init_scale": scale}

    def noise(seed, index, stream, scale):
        """Noise for a seed and index: stream 0 is the initial noise, stream i + 1 the noise of step i."""
        return {"noise": normal_noise(seed, index, stream[0], shape) * scale}

    numbers = _numbers("sampler", "num_steps", "step"), _numbers("seed", "index", "stream")
    signatures = {"plan": Signature(plan, numbers[0]), "noise": Signature(noise, numbers[1] + _floats(scale=(1,)))}
    return DevicePart([bank.rows, bank.starts, bank.counts, bank.scales], signatures)


def _text_encoder(pipeline: Pipeline) -> DevicePart:
    functions, length = pipeline.functions.for_target("phone"), pipeline.spec.text[0].length

    def encode(tokens):
        """Contexts of the negative prompt's tokens and, in the second row, of the prompt's."""
        return functions.encode(tokens)

    inputs = [tf.TensorSpec([2, length], tf.int32, name="tokens")]
    return DevicePart([v.value for v in functions.parts.text_encoder.variables], {"encode": Signature(encode, inputs)})


def _denoiser(pipeline: Pipeline, shape: tuple[int, int, int]) -> DevicePart:
    functions = pipeline.functions.for_target("phone")
    denoiser = functions.parts.denoiser
    history = [f"history{i}" for i in range(HISTORY - 1)]

    def denoise_and_step(latents, context, timestep_features, row, noise, guidance_scale, history0, history1, history2, history3):
        """Latents after the step, and `history`, the next step's history0; this step's history0 is then history1."""
        output = functions.guided(latents, timestep_features, functions.prepare({"context": context}), guidance_scale)
        before = (history0, history1, history2, history3, tf.zeros_like(latents))  # the oldest is never read
        moved, (newest, *_) = step(unpack(row), latents, before, output, noise)
        # The sum itself may not be an output: where it is used again, too, GPUs of phones return one of its summands
        # (LiteRT issue 8599). The maximum changes no number.
        return {"latents": moved, "history": tf.maximum(newest, tf.float32.min)}

    image, text = (1, *shape), (2, *pipeline.spec.conditioning()["context"])
    features = denoiser.timestep_features(tf.zeros([1])).shape
    inputs = _floats(latents=image, context=text, timestep_features=features, row=(ROW_SIZE,), noise=image)
    inputs += _floats(guidance_scale=(1,), **{name: image for name in history})
    return DevicePart([v.value for v in denoiser.variables], {"step": Signature(denoise_and_step, inputs)})


def _decoder(pipeline: Pipeline, shape: tuple[int, int, int], size: tuple[int, int]) -> DevicePart:
    functions = pipeline.functions.for_target("phone")

    def decode(latents):
        """The image as int32 ARGB colours, [H, W]: Kotlin's tensors hold no uint8."""
        # Split before the cast: LiteRT's GPU accelerator does not split whole numbers.
        levels = tf.split(functions.decode_levels(latents), 3, axis=-1)
        red, green, blue = (tf.cast(one, tf.int32) for one in levels)
        return {"colours": tf.reshape((red * 256 + green) * 256 + blue + OPAQUE, size)}

    variables = [v.value for v in functions.parts.decoder.variables]
    return DevicePart(variables, {"decode": Signature(decode, _floats(latents=(1, *shape)))})
