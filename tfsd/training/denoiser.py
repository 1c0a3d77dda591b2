"""Stage two: text encoder and denoiser learn to denoise the latents of captioned scenes."""

from pathlib import Path

import keras
import numpy as np

from tfsd.models import build, default_settings
from tfsd.samplers.schedule import NoiseSchedule
from tfsd.specs import ModelSpec, VPSpec
from tfsd.storage.atomic import new_file
from tfsd.text import Tokenizer
from tfsd.training import drawing, scenes
from tfsd.training.loop import Trainer
from tfsd.training.recipe import CURRICULUM, DENOISER, TrainingRecipe

CHUNK = 2048  # scenes drawn and encoded at once
POOL = 10  # chunks a batch is drawn from: the newest ones
REUSE = 4  # times that a scene is seen, on average
UNCAPTIONED = 0.1  # share of empty captions, for classifier-free guidance
OBJECT_WEIGHT = 4.0  # of the loss around objects: backgrounds are learned soon, shapes late


class TrainableDenoiser(keras.Model):
    """Text encoder and denoiser as one trainable model.

    Call: (latents [B, h, w, c], timesteps [B], tokens [B, L]) -> output [B, h, w, c].
    """

    def __init__(self, spec: ModelSpec):
        super().__init__(name="denoiser")
        self.spec = spec
        # Weights, norms and softmaxes stay in float32; a third less time than float32 throughout.
        parts = build(spec, dtype="mixed_bfloat16", parts=("text_encoder", "denoiser"))
        self.text_encoder, self.denoiser = parts["text_encoder"], parts["denoiser"]

    def build(self, shape):  # noqa: D102
        self.built = True

    def call(self, inputs):  # noqa: D102
        latents, timesteps, tokens = inputs
        return self.denoiser(latents, timesteps, self.text_encoder(tokens))


class LatentPool:
    """Latents, places of objects and captions of scenes, drawn as training goes on and kept in `folder` for a restart.

    Chunk i of a seed always holds the same scenes; the curriculum decides which kinds.
    """

    def __init__(self, spec: ModelSpec, encoder: keras.Model, recipe: TrainingRecipe, folder: Path):
        self.spec = spec
        self.encoder = encoder
        self.recipe = recipe
        self.folder = Path(folder)
        self.tokenizer = Tokenizer(spec.text[0])
        self.chunks: dict[int, tuple[np.ndarray, ...]] = {}

    def window(self, step: int) -> range:
        """Returns the numbers of the chunks that the batch of a step is drawn from."""
        newest = step * self.recipe.batch // (CHUNK * REUSE)
        return range(max(0, newest - POOL + 1), newest + 1)

    def _stage(self, chunk: int, rng) -> str:
        share = chunk * CHUNK * REUSE / (self.recipe.steps * self.recipe.batch)
        mix = [stages for begins, stages in CURRICULUM if begins <= share][-1]
        return rng.choice(list(mix), p=list(mix.values()))

    def _draw(self, chunk: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng([self.recipe.seed, 2, chunk])
        drawn = [scenes.training_scene(rng, self._stage(chunk, rng)) for _ in range(CHUNK)]
        encoded = []
        for i in range(0, CHUNK, 64):
            images = np.stack([drawing.render(scene) for scene in drawn[i : i + 64]]).astype("float32") / 127.5 - 1.0
            mean = self.encoder.predict_on_batch(images)[..., : self.spec.vae.latent_channels]
            encoded.append((mean - self.spec.vae.shift) * self.spec.vae.scale)
        latents = np.concatenate(encoded).astype("float16")
        near = np.stack([drawing.near_objects(scene, latents.shape[1]) for scene in drawn])
        return latents, near, self.tokenizer([scene.caption for scene in drawn])

    def chunk(self, number: int) -> tuple[np.ndarray, ...]:
        """Returns a chunk, drawing it if need be.

        Shapes: latents [CHUNK, h, w, c] float16, whether an object is near [CHUNK, h, w], tokens [CHUNK, L].
        """
        if number not in self.chunks:
            path = self.folder / f"latents-{number:05d}.npz"
            if not path.exists():
                latents, near, tokens = self._draw(number)
                self.folder.mkdir(parents=True, exist_ok=True)
                with new_file(path) as file:
                    np.savez(file, latents=latents, near=near, tokens=tokens.astype("uint16"))
            with np.load(path, allow_pickle=False) as saved:
                self.chunks[number] = saved["latents"], saved["near"], saved["tokens"]
        return self.chunks[number]

    def draw(self, step: int, rng) -> tuple[np.ndarray, ...]:
        """Returns latents float32, whether an object is near, and tokens int32 for the batch of a step."""
        window = self.window(step)
        for old in [number for number in self.chunks if number < window[0]]:
            del self.chunks[old]
            (self.folder / f"latents-{old:05d}.npz").unlink(missing_ok=True)
        which, rows = rng.integers(window[0], window[-1] + 1, self.recipe.batch), rng.integers(0, CHUNK, self.recipe.batch)
        examples = [[part[row] for part in self.chunk(number)] for number, row in zip(which, rows)]
        latents, near, tokens = (np.stack(parts) for parts in zip(*examples))
        return latents.astype("float32"), near, tokens.astype("int32")


def schedule_of(spec: ModelSpec) -> NoiseSchedule:
    """Returns the noise levels that a denoiser is trained for. Raises: `ValueError` for a model of flow matching."""
    if not isinstance(spec.schedule, VPSpec):
        raise ValueError(f"spec.schedule must be a VPSpec, which denoisers are trained for; got {type(spec.schedule).__name__}.")
    return NoiseSchedule(spec.schedule)


def batch_of(schedule: NoiseSchedule, pool: LatentPool, step: int):
    """Returns the inputs (noised latents, timesteps, tokens), the target and the weights of its errors for a step.

    Timesteps are stratified: one from each of B equal parts of the schedule. The target is v: Salimans & Ho 2022.
    """
    rng = np.random.default_rng([pool.recipe.seed, 3, step])
    latents, near, tokens = pool.draw(step, rng)
    count = len(latents)
    empty = pool.tokenizer([""]).astype("int32")
    tokens = np.where(rng.random(count)[:, None] < UNCAPTIONED, empty, tokens)
    shares = (rng.permutation(count) + rng.random(count)) / count
    timesteps = np.floor(shares * schedule.spec.train_steps)
    alpha, sigma = (np.asarray(m, "float32")[:, None, None, None] for m in schedule.marginals(timesteps))
    noise = rng.standard_normal(latents.shape, dtype="float32")
    weights = np.where(near, OBJECT_WEIGHT, 1.0).astype("float32")
    inputs = alpha * latents + sigma * noise, timesteps.astype("float32"), tokens
    return inputs, alpha * noise - sigma * latents, weights / weights.mean()


@default_settings()
def latent_statistics(encoder: keras.Model, seed: int = 0, count: int = 512) -> tuple[float, float]:
    """Returns mean and standard deviation of the latents of drawn scenes."""
    rng = np.random.default_rng([seed, 4])
    images = [drawing.render(scenes.training_scene(rng, "all")) for _ in range(count)]
    means = [
        np.split(encoder.predict_on_batch(np.stack(images[i : i + 64]).astype("float32") / 127.5 - 1.0), 2, axis=-1)[0]
        for i in range(0, count, 64)
    ]
    return float(np.mean(means)), float(np.std(means))


@default_settings()
def trainer(spec: ModelSpec, encoder: keras.Model, folder: Path, recipe: TrainingRecipe = DENOISER) -> Trainer:
    """Returns the trainer of text encoder and denoiser, its state under `folder`; raises as `schedule_of`."""
    schedule = schedule_of(spec)
    keras.utils.set_random_seed(recipe.seed)
    pool = LatentPool(spec, encoder, recipe, Path(folder) / "latents")
    return Trainer(TrainableDenoiser(spec), recipe, lambda step: batch_of(schedule, pool, step), Path(folder))
