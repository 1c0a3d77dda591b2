"""Trains the embedded model: the VAE, then text encoder and U-Net on its latents, then writes a model folder."""

from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from tfsd.specs import ModelSpec
from tfsd.training import autoencoder, denoiser, drawing, scenes
from tfsd.training.loop import Trainer
from tfsd.training.recipe import AUTOENCODER, DENOISER, tiny_spec
from tfsd.weights import save_model

STAGES = ("all", "autoencoder", "denoiser")


def train(
    folder: str | Path,
    *,
    stage: str = "all",
    steps: int | None = None,
    seed: int = 0,
    every: int = 500,
    progress: bool = True,
    spec: ModelSpec | None = None,
) -> Path:
    """Trains `tiny` under `folder`, going on from its checkpoints, and returns the model folder `folder`/model.

    `steps` ends a stage earlier than its recipe does; the next call goes on from there. The model folder and
    sample pictures are written every `every` steps. Raises: `ValueError` for an unknown stage or bad numbers.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {stage!r}.")
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps must be a whole number from 1; got {steps!r}.")
    folder, spec = Path(folder), spec or tiny_spec()
    compressing = autoencoder.trainer(spec, folder / "autoencoder", replace(AUTOENCODER, seed=seed))
    compressing.restore()
    if stage != "denoiser":
        compressing.run(steps=steps, every=every, progress=progress, on_checkpoint=show_reconstructions)
    if stage == "autoencoder":
        return folder
    with compressing.averaged() as vae:
        mean, deviation = denoiser.latent_statistics(vae.encoder, seed)
        spec = replace(spec, vae=replace(spec.vae, shift=round(mean, 4), scale=round(1 / deviation, 4)))
        denoising = denoiser.trainer(spec, vae.encoder, folder / "denoiser", replace(DENOISER, seed=seed))
        denoising.restore()

        def write(trainer: Trainer):
            write_model(folder, spec, vae, trainer)

        denoising.run(steps=steps, every=every, progress=progress, on_checkpoint=write)
        write(denoising)
    return folder / "model"


def write_model(folder: Path, spec: ModelSpec, vae: keras.Model, trainer: Trainer):
    """Writes the averaged weights in float16 as the model folder `folder`/model, with the settings of training."""
    with trainer.averaged() as model:
        parts = {"text_encoder": model.text_encoder, "unet": model.unet, "decoder": vae.decoder, "encoder": vae.encoder}
        notes = {"steps": trainer.step, "pictures": trainer.step * trainer.recipe.batch, "recipe": asdict(trainer.recipe)}
        save_model(folder / "model", spec, parts, dtype="float16", notes={"training": notes}, overwrite=True)


def show_reconstructions(trainer: Trainer, count: int = 8):
    """Writes pictures and their reconstructions, one below the other, beside the checkpoint."""
    rng = np.random.default_rng(5)
    images = np.stack([drawing.render(scenes.evaluation_scene(rng, "two")) for _ in range(count)])
    with trainer.averaged() as vae:
        moments = vae.encoder.predict_on_batch(images.astype("float32") / 127.5 - 1.0)
        decoded = vae.decoder.predict_on_batch(moments[..., : moments.shape[-1] // 2])
    decoded = np.clip((decoded + 1.0) * 127.5 + 0.5, 0, 255).astype("uint8")
    Image.fromarray(np.concatenate([np.hstack(images), np.hstack(decoded)])).save(trainer.folder / "reconstructions.png")


