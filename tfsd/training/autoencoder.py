"""The VAE learns to compress drawn scenes; later its decoder alone goes on, for the latents that are then fixed."""

from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
from keras import ops

from tfsd.models import build, default_settings
from tfsd.specs import ModelSpec
from tfsd.training import drawing, scenes
from tfsd.training.loop import Trainer
from tfsd.training.recipe import AUTOENCODER, TrainingRecipe

CROP = 64  # pixels: four crops teach more than one image, at the same cost
KL_WEIGHT = 3e-4
EDGE_WEIGHT = 0.5


def start_as_pooling(model: keras.Model):
    """Sets a half of the VAE so that it begins as average pooling, or as repeating pixels, behind its norms.

    Every convolution first hands its input channels on; residual branches begin at zero anyway. Training then
    starts from a blurred image in its right colours.
    """
    for layer in _layers_in(model):
        if not isinstance(layer, keras.layers.Conv2D) or layer.name in ("conv1", "conv2"):
            continue
        kernel = 0.1 * ops.convert_to_numpy(layer.kernel)
        size, _, width, filters = kernel.shape
        same = np.eye(width, filters)
        if layer.strides == (2, 2):
            kernel[:2, :2] += same / 4
        else:
            kernel[size // 2, size // 2] += same
        layer.kernel.assign(kernel)


def _layers_in(layer: keras.Layer) -> Iterator[keras.Layer]:
    """Yields a layer and, recursively, the layers in it: they are its attributes, see `tfsd.models.layers.Block`."""
    yield layer
    for inner in vars(layer).values():
        if isinstance(inner, keras.Layer):
            yield from _layers_in(inner)


class Autoencoder(keras.Model):
    """Encoder and decoder in a row, with the noise of the posterior between them.

    Call: images [B, H, W, 3] in [-1, 1] -> the same, reconstructed.
    Adds the KL divergence to the unit normal to the loss. Source: Kingma & Welling 2013.
    With `frozen_encoder` only the decoder learns: the latents stay what a denoiser was trained on.
    """

    def __init__(self, spec: ModelSpec, seed: int = 0, *, frozen_encoder: bool = False):
        super().__init__(name="autoencoder")
        parts = build(spec, parts=("encoder", "decoder"))
        self.encoder, self.decoder = parts["encoder"], parts["decoder"]
        start_as_pooling(self.encoder)
        start_as_pooling(self.decoder)
        self.encoder.trainable = not frozen_encoder
        self.random = keras.random.SeedGenerator(seed)

    def build(self, shape):  # noqa: D102
        self.built = True

    def call(self, images):  # noqa: D102
        mean, log_variance = ops.split(self.encoder(images), 2, axis=-1)
        log_variance = ops.clip(log_variance, -30.0, 20.0)
        if self.encoder.trainable:
            kl = 0.5 * ops.mean(ops.square(mean) + ops.exp(log_variance) - 1.0 - log_variance)
            self.add_loss(KL_WEIGHT * kl)
        noise = keras.random.normal(ops.shape(mean), dtype=mean.dtype, seed=self.random)
        return self.decoder(mean + ops.exp(0.5 * log_variance) * noise)


def image_loss(images, reconstructed):
    """Mean absolute difference of the pixels plus that of the differences between neighbours."""
    error = reconstructed - images
    across = ops.mean(ops.abs(error[:, :, 1:] - error[:, :, :-1]))
    down = ops.mean(ops.abs(error[:, 1:] - error[:, :-1]))
    return ops.mean(ops.abs(error)) + EDGE_WEIGHT * (across + down)


def crops(recipe: TrainingRecipe, step: int, size: int) -> np.ndarray:
    """Returns the batch of a step: crops [B, size, size, 3] of scenes in [-1, 1], each touching an object."""
    rng = np.random.default_rng([recipe.seed, 1, step])
    batch = []
    for _ in range(recipe.batch):
        scene = scenes.training_scene(rng, "all")
        image = drawing.render(scene)
        side = image.shape[0]
        thing = scene.things[rng.integers(len(scene.things))]
        left, top = (
            int(np.clip(centre * side - size / 2 + rng.integers(-size // 2, size // 2 + 1), 0, side - size))
            for centre in (thing.x, thing.y)
        )
        batch.append(image[top : top + size, left : left + size])
    return np.stack(batch).astype("float32") / 127.5 - 1.0


@default_settings()
def trainer(spec: ModelSpec, folder: Path, recipe: TrainingRecipe = AUTOENCODER, *, decoder_only: bool = False) -> Trainer:
    """Returns the trainer of the VAE, its state under `folder`; with `decoder_only` it sees whole images."""
    keras.utils.set_random_seed(recipe.seed)
    size = spec.default_size[0] if decoder_only else CROP

    def batch(step):
        images = crops(recipe, step, size)
        return images, images

    model = Autoencoder(spec, recipe.seed, frozen_encoder=decoder_only)
    return Trainer(model, recipe, batch, Path(folder), image_loss)
