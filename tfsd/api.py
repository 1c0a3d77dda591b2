"""Text to image in Python: a model that makes images, and the function that loads one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from typing_extensions import Unpack

from tfsd.arguments.checks import (
    choice,
    float_rows,
    per_prompt,
    prompts_of,
    require_batch,
    side_of,
    whole,
)
from tfsd.arguments.options import EditOptions, GenerateOptions, ModelOptions, require_known, takes_options
from tfsd.arguments.table import IMAGE_TO_IMAGE, PYTHON, Seeds, Texts
from tfsd.compat.kerascv import kerascv_names, points_to_load
from tfsd.errors import shown
from tfsd.finite import require_finite
from tfsd.generation import make_images
from tfsd.images import Images
from tfsd.models import DTYPES
from tfsd.pipeline import Pipeline
from tfsd.programs import require_own_threads
from tfsd.runtime.backend import require_tensorflow
from tfsd.runtime.freeing import free_memory
from tfsd.specs import ModelSpec
from tfsd.specs.limits import MAX_BATCH
from tfsd.storage import model_folders
from tfsd.storage.files import sha256
from tfsd.text import Tokenizer, warn_of_unknown_words


class StableDiffusion:
    """A model that makes images. `tfsd.load` returns one.

    The first image of a size compiles the graph; later images of that size are fast. Several threads may use one model.
    `with load(...) as model` closes the model at the end of the block. `identity` is what recipes say about the model beyond
    its spec: the name it was loaded by and a hash of its weights.
    """

    @points_to_load
    def __init__(
        self,
        spec: ModelSpec,
        parts: dict[str, Any],
        *,
        dtype: str = "float32",
        jit_compile: bool = True,
        identity: dict[str, Any] | None = None,
        load_encoder: Callable[[], Any] | None = None,
    ):
        self.spec = spec
        self.identity: dict[str, Any] = {"model": spec.name, "weights": "", "numerics_override": None} | (identity or {})
        self.identity |= {"dtype": dtype, "numerics": spec.numerics, "jit_compile": jit_compile}
        self.tokenizer = Tokenizer(spec.text[0])
        self._pipeline: Pipeline | None = Pipeline(spec, parts, jit_compile=jit_compile, load_encoder=load_encoder)
        self.pace: dict[Any, Any] = {}  # how long a step takes, for progress: see `tfsd.progress`
        self._unknown: set[frozenset[str]] = set()  # words that a warning told of

    def __repr__(self) -> str:
        (height, width), own = self.spec.default_size, self.identity
        xla = "with XLA" if own["jit_compile"] else "without XLA"
        what = f"{shown(own['model'])}: {width} x {height} pixels, {own['dtype']}, numerics of {own['numerics']}, {xla}"
        return f"<StableDiffusion {what}>"

    def __reduce__(self) -> Any:
        raise TypeError("A model cannot be pickled or copied. Call tfsd.load in each process, or use one model in all threads.")

    @property
    def pipeline(self) -> Pipeline:
        """The networks with their sampling loop. Raises: `RuntimeError` if the model is closed."""
        if self._pipeline is None:
            raise RuntimeError(f"The model {shown(self.identity['model'])} is closed. Load it again with tfsd.load().")
        return self._pipeline

    def close(self) -> None:
        """Releases the weights and the traced graphs. The model can make no more images; closing it again does nothing.

        Images that another thread is making are finished first, and the memory is free after them.
        """
        if self._pipeline is not None:
            self._pipeline = None
            free_memory()

    def __enter__(self) -> "StableDiffusion":
        _ = self.pipeline  # raises if it is closed
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @kerascv_names
    @takes_options(PYTHON)
    def text_to_image(self, prompt: Texts, batch_size: int = 1, seed: Seeds = None, **options: Unpack[ModelOptions]) -> Images:
        """Returns images of a prompt: uint8 [B, H, W, 3], with the recipe of each.

        - With a list of texts there are `batch_size` images of each, in order.
        - `negative_prompt`, `seed`, `guidance_scale`: one value for all images, or a list with one value per image.
        - `seed`: any int64. Image i of a batch is (seed, index + i); with a list, image i is (seed[i], index). None chooses a
          seed at random; the result's `seeds` tells which. The same call gives the same bytes. The same (prompt, seed, index)
          in a batch of another size gives the same image to within one level of 255 per pixel. KerasCV 0.9 starts from the
          same noise.
        - `sampler` may be another program's name for it ("Euler a"), in any case.
        - `num_steps`, `guidance_scale`, `sampler`, `height` and `width` default to the model's own values,
          `spec.default_...`.

        KerasCV's argument names are accepted, too: see `tfsd.compat.kerascv`. If a prompt has words that a model with a small
        vocabulary, such as "tiny", never learned, an `UnknownWordsWarning` names them once.

        Raises: `TypeError` and `ValueError`, which name the argument; `NotFiniteError` if `dtype` cannot hold the model's
        numbers; `Cancelled`.
        """
        require_known(self.text_to_image, options)
        prompts = prompts_of(prompt, batch_size)
        tokens = self.tokens(prompts, options.get("on_long", "truncate"))
        return make_images(self, prompts, seed, {**options}, tokens=tokens)

    @takes_options(PYTHON)
    def image_to_image(
        self, prompt: Texts, image: Any, batch_size: int = 1, seed: Seeds = None, **options: Unpack[EditOptions]
    ) -> Images:
        """Returns images made of another image and a prompt: uint8 [B, H, W, 3], with the recipe of each.

        - `image` is one image for all, or a list with one per image: the path or the bytes of a file (PNG, JPEG, WebP, BMP,
          GIF, TIFF), an image of Pillow, or an array [H, W, 3], uint8 or float in [0, 1]. EXIF orientation is applied and
          transparency becomes white. An image of another shape than `height` and `width`, the model's own by default, is
          fitted as `fit` says.
        - `strength`: of `num_steps` steps the last `int(num_steps * strength)` are made, on the image with the noise of their
          level. 0 returns the image as the VAE decodes it.
        - All other arguments are those of `text_to_image`. The first image loads the VAE's encoder.

        The recipe has the SHA-256 of the image (of a file: of its bytes), and `steps_made`. As in diffusers, except that `pndm`
        and `lms` begin their history at the first step that is made.

        Raises: as `text_to_image`; `OSError` for a file that cannot be read.
        """
        require_known(self.image_to_image, options)
        prompts = prompts_of(prompt, batch_size)
        tokens = self.tokens(prompts, options.get("on_long", "truncate"))
        return make_images(self, prompts, seed, {**options, "image": image}, tokens=tokens, task=IMAGE_TO_IMAGE)

    def encode_text(self, prompt: str | Sequence[str], *, on_long: str = "error") -> np.ndarray:
        """Returns the context [P, L, W] float32 of one or more prompts, for `generate_image`.

        As in KerasCV's method of this name, a prompt that is too long raises an error unless `on_long="truncate"`.

        Raises: `TypeError` and `ValueError`, which name the argument; `NotFiniteError`.
        """
        require_own_threads()
        tokens = self.tokens(per_prompt(prompt, 1), on_long)
        context: np.ndarray = self.pipeline.encode(tf.constant(tokens))["context"].numpy()
        require_finite(context, "context", self.identity["dtype"])
        return context

    @kerascv_names
    @takes_options(PYTHON)
    def generate_image(
        self,
        encoded_text: np.ndarray,
        negative_prompt: str | Sequence[str] | None = None,
        batch_size: int = 1,
        num_steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        diffusion_noise: np.ndarray | None = None,
        seed: int | Sequence[int] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Images:
        """Returns images of an encoded text, as KerasCV's method of this name does.

        `encoded_text` is [L, W], [1, L, W] or [B, L, W]. `diffusion_noise`, [h, w, c], [1, h, w, c] or [B, h, w, c], replaces
        the noise of a seed and determines the image size. All other arguments are those of `text_to_image`.

        Raises: `ValueError` if both `seed` and `diffusion_noise` are given, as in KerasCV; otherwise as `text_to_image`.
        """
        require_known(self.generate_image, options)
        if seed is not None and diffusion_noise is not None:
            raise ValueError("`diffusion_noise` and `seed` should not both be passed to `generate_image`. Leave one out.")
        spec, batch = self.spec, whole("batch_size", batch_size, 1, MAX_BATCH)
        contexts = float_rows("encoded_text", encoded_text, batch, spec.conditioning()["context"], grow=True)
        require_batch(len(contexts))
        sizes: dict[str, int] = {}
        if diffusion_noise is not None:
            noise_shape = (None, None, spec.vae.latent_channels)
            diffusion_noise = float_rows("diffusion_noise", diffusion_noise, len(contexts), noise_shape)
            own = {name: side * spec.vae.factor for name, side in zip(("height", "width"), diffusion_noise.shape[1:3])}
            given = tuple(options.get(name) for name in own)
            if any(side_of(name, side, own[name], 1) != own[name] for name, side in zip(own, given)):
                raise ValueError(
                    f"diffusion_noise is for height and width {tuple(own.values())}; got {shown(given)}. Leave them out."
                )
            sizes, seed = own, 0
        guidance: dict[str, Any] = {"negative_prompt": negative_prompt, "num_steps": num_steps, "guidance_scale": guidance_scale}
        prompts = [None] * len(contexts)
        return make_images(self, prompts, seed, {**guidance, **options, **sizes}, contexts=contexts, noise=diffusion_noise)

    def tokens(self, prompts: list[str], on_long: str, name: str = "prompt") -> np.ndarray:
        """Returns the tokens [B, L] of prompts. Raises: `ValueError` for those that the model does not know."""
        tokens, rows = self.tokenizer(prompts, on_long=on_long, name=name), self.spec.text[0].vocabulary
        if tokens.max() >= rows:
            raise ValueError(f"{name} has token {tokens.max()}, but the model's text encoder knows {rows} tokens. Take it out.")
        warn_of_unknown_words(self.tokenizer, prompts, name, self._unknown)
        return tokens


def load(
    model: str | Path = "tiny", *, dtype: str = "float32", jit_compile: bool = True, numerics: str | None = None
) -> StableDiffusion:
    """Loads a model: "tiny", the name of a downloaded preset, or a model folder.

    - `dtype`: float32, bfloat16 or float16, for weights and multiplications of the text encoder and the denoiser. The VAE
      stays in float32, because its rounding would be visible. Queries and keys are multiplied in float32 in float16, and in
      bfloat16 if the model requires it.
    - `jit_compile`: compile with XLA.
    - `numerics`: "compvis" or "kerascv" instead of the model folder's own.

    Keras' global settings (dtype policy, `floatx`, `image_data_format`) have no effect. Do not fork the process after this
    call, because TensorFlow's threads do not survive a fork; use multiprocessing's "spawn".

    Raises: `CheckpointError` for an unknown name and for a folder that is missing or damaged; `ValueError` for other
    arguments; `BackendError` if Keras does not run on TensorFlow; `ForkError` in a forked process.
    """
    require_tensorflow()
    require_own_threads()
    choice("dtype", dtype, DTYPES)
    folder = model_folder(model)
    spec = model_folders.load_spec(folder)
    if numerics is not None:
        spec = spec.with_numerics(numerics)
    spec.conditioning()  # raises for several text encoders, before they are loaded
    low = [part.name for part in spec.parts() if part.spec is not spec.vae]
    parts = model_folders.load_parts(folder, spec, parts=low, dtype=dtype)
    parts |= model_folders.load_parts(folder, spec, parts=("decoder",), dtype="float32")
    identity = {"model": str(model), "weights": fingerprint(folder), "numerics_override": numerics}

    def load_encoder() -> Any:
        return model_folders.load_parts(folder, spec, parts=("encoder",), dtype="float32")["encoder"]

    options: dict[str, Any] = {"dtype": dtype, "jit_compile": jit_compile}
    return StableDiffusion(spec, parts, identity=identity, load_encoder=load_encoder, **options)


def model_folder(model: str | Path) -> Path:
    """Returns the folder of a model. Raises: `TypeError`; `CheckpointError` for an unknown name."""
    if not isinstance(model, (str, Path)):
        raise TypeError(f"model must be a name or the path of a model folder; got {shown(model)}.")
    return model_folders.resolve(model)


def fingerprint(folder: Path) -> str:
    """Returns the hash of a model folder's manifest, by which recipes know its weights."""
    return sha256(folder / "manifest.json")[:12]
