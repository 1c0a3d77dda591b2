"""One call of a model: its arguments are checked, a plan is built, and the pipeline's programs make the images."""

from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tfsd.arguments.checks import checked, require_memory, side_of
from tfsd.arguments.table import IMAGE_TO_IMAGE, PYTHON, TEXT_TO_IMAGE, model_defaults
from tfsd.finite import require_rows
from tfsd.images import Images
from tfsd.images.inputs import read_images
from tfsd.images.recipes import recipes_of
from tfsd.noise import effective_seed, require_counters
from tfsd.pipeline import Pipeline, SamplingInputs, State
from tfsd.programs import require_own_threads
from tfsd.progress import Progress
from tfsd.samplers.plans import build_plan
from tfsd.specs import ModelSpec


class Model(Protocol):
    """What a call reads of a model: `tfsd.api.StableDiffusion`."""

    spec: ModelSpec
    identity: dict[str, Any]
    pace: dict[Any, Any]

    @property
    def pipeline(self) -> Pipeline:
        """The networks with their sampling loop."""

    def tokens(self, prompts: list[str], on_long: str, name: str = "prompt") -> np.ndarray:
        """Returns the tokens [B, L] of prompts."""


class Start(NamedTuple):
    """What sampling begins with, beside the noise of the seeds."""

    noise: np.ndarray | None = None  # [B, h, w, c], instead of that noise
    image: np.ndarray | None = None  # [B, H, W, 3] in [-1, 1]
    sampled: bool = True  # draws the image's latents; False takes the mean of their distribution


def make_images(
    model: Model,
    prompts: list[Any],
    seed: Any,
    options: dict[str, Any],
    *,
    tokens: np.ndarray | None = None,
    contexts: np.ndarray | None = None,
    noise: np.ndarray | None = None,
    task: str = TEXT_TO_IMAGE,
) -> Images:
    """Makes one image per prompt, from `tokens` or `contexts`, and from `noise` where it is given."""
    require_own_threads()
    show = Progress(options.get("progress", False), options.get("callback"), model.pace)
    spec, batch = model.spec, len(prompts)
    values = checked(seed, options, batch, PYTHON, model_defaults(spec), task=task)
    height, width = (side_of(name, values[name], values[name], spec.vae.factor) for name in ("height", "width"))
    start, skipped = Start(noise), 0
    hashes: list[str] = []
    more: dict[str, Any] = {} if noise is None else {"custom_noise": True}
    if task == IMAGE_TO_IMAGE:
        pixels, hashes = read_images("image", values["image"], batch, (height, width), values["fit"])
        start = Start(image=pixels, sampled=values["sample_image"])
        made = int(values["num_steps"] * values["strength"])  # as diffusers rounds
        skipped, more = values["num_steps"] - made, {"steps_made": made}
    first = min(skipped, values["num_steps"] - 1)
    plan = build_plan(spec.schedule, values["sampler"], values["num_steps"], first, values["eta"])
    shape = model.pipeline.latent_shape(height, width)
    require_counters(values["index"], shape)
    require_memory(spec.attention_bytes(batch, *shape[:2]), f"a batch of {batch} images of {height} x {width}")
    negative_tokens = model.tokens(values["negative_prompt"], values["on_long"], "negative_prompt")
    inputs = SamplingInputs(
        plan=tf.constant(np.repeat(plan.rows[None], batch, axis=0)),
        init_scale=tf.constant([plan.init_scale] * batch, tf.float32),
        seeds=tf.constant([effective_seed(one) for one in values["seed"]], tf.int32),
        indices=tf.constant(values["index"], tf.int32),
        guidance=tf.constant(values["guidance_scale"], tf.float32),
    )
    positive = tokens if contexts is None else {"context": tf.constant(contexts, tf.float32)}
    count = plan.count if skipped == first else 0
    images = _sample(model, inputs, (negative_tokens, positive), (height, width), count, show, start)
    recipes = recipes_of({"prompt": prompts} | values, more | model.identity)
    for recipe, digest in zip(recipes, hashes):
        recipe["image_sha256"] = digest
    return Images(images, recipes)


def _sample(
    model: Model,
    inputs: SamplingInputs,
    texts: tuple[Any, Any],
    size: tuple[int, int],
    count: int,
    show: Progress,
    start: Start,
) -> np.ndarray:
    """Returns images uint8 [B, H, W, 3].

    `texts`, negative and positive: tokens [B, L], or the conditioning made of them. `count`: the rows of the plan.
    """
    pipeline, batch, positive = model.pipeline, len(inputs.seeds), texts[1]
    with show.stages() as stages:
        stages("encoding the prompt")
        halves = [one if isinstance(one, dict) else pipeline.encode(tf.constant(one)) for one in texts]
        state = _begun(pipeline, inputs, halves, pipeline.latent_shape(*size), start, count, stages)
        for first, last in show.chunks(count, (batch, *size), compiles=True) if count else ():
            state = pipeline.advance(inputs, state, tf.constant(first), tf.constant(last))
        stages("decoding")
        images, finite = pipeline.finish(state.latents)
        given = {"encoded_text": positive["context"].numpy()} if isinstance(positive, dict) else {}
        given |= {} if start.noise is None else {"diffusion_noise": start.noise}
        require_rows(finite.numpy(), "latents", model.identity["dtype"], given)
        pixels: np.ndarray = images.numpy()
        return pixels


def _begun(pipeline, inputs: SamplingInputs, halves, shape: tuple[int, int, int], start: Start, count: int, stages) -> State:
    """Returns the state before the first step; with no step to make, its latents are those of the image."""
    noise = None if start.noise is None else tf.constant(start.noise, tf.float32)
    if start.image is None:
        return pipeline.begin(inputs, *halves, shape, noise)
    stages("encoding the image")
    draws = None if start.sampled else tf.zeros((len(inputs.seeds), *shape))
    latents = pipeline.encode_image(tf.constant(start.image), inputs.seeds, inputs.indices, draws)
    state = pipeline.begin(inputs, *halves, shape, noise, latents)
    return state if count else state._replace(latents=latents)
