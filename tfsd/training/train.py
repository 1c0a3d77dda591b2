"""Trains the embedded model: the VAE, text encoder and denoiser on its latents, its decoder; writes a model folder."""

import functools
import itertools
from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from tfsd.arguments.checks import whole
from tfsd.errors import CheckpointError, shown
from tfsd.models import build, default_settings
from tfsd.specs import ModelSpec
from tfsd.storage.atomic import new_file
from tfsd.storage.folders import require_replaceable
from tfsd.storage.model_folders import load_parts, resolve, save_model
from tfsd.training import autoencoder, denoiser, drawing, scenes
from tfsd.training.contact_sheet import contact_sheet
from tfsd.training.loop import Trainer
from tfsd.training.recipe import AUTOENCODER, DECODER, DENOISER, tiny_spec

STAGES = ("all", "autoencoder", "decoder", "denoiser")


@default_settings()
def train(
    folder: str | Path,
    *,
    stage: str = "all",
    steps: int | None = None,
    seed: int = 0,
    every: int = 500,
    progress: bool = True,
    begin: str | Path | None = None,
    spec: ModelSpec | None = None,
) -> Path:
    """Trains `tiny` under `folder`, going on from its checkpoints, and returns the model folder `folder`/model.

    The stages are, in order: "autoencoder"; "denoiser", on the latents of that autoencoder; "decoder", which goes on
    with its decoder alone. The latter two can run at the same time. `steps` ends a stage earlier than its recipe does;
    the next call goes on from there. The model folder is written every `every` steps of the denoiser and at the end.
    `begin`, a model's name or folder, gives the weights that stages without a checkpoint begin with.

    Raises: `TypeError`, `ValueError` for an unknown stage, bad numbers or a `spec` of flow matching; `CheckpointError` for a
    `begin` that does not fit, or contents of `folder`/model that are not its own.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {shown(stage)}.")
    steps = None if steps is None else whole("steps", steps, 1, 10**9)
    folder, spec = Path(folder), spec or tiny_spec()
    denoiser.schedule_of(spec)  # here and below: raises before hours are spent
    _require_own(folder)
    first = None if begin is None else load_parts(resolve(begin), spec)
    run = functools.partial(Trainer.run, steps=steps, every=every, progress=progress)
    compressing = _started(autoencoder.trainer(spec, folder / "autoencoder", replace(AUTOENCODER, seed=seed)), first)
    if stage in ("all", "autoencoder"):
        run(compressing, on_checkpoint=show_reconstructions)
    if stage == "autoencoder":
        return folder
    decoding = autoencoder.trainer(spec, folder / "decoder", replace(DECODER, seed=seed), decoder_only=True)
    if not decoding.restore():
        decoding.begin_with(compressing)
    denoising = _started(_denoiser(spec, folder, compressing, seed), first)
    if stage in ("all", "denoiser"):
        run(denoising, on_checkpoint=lambda trainer: write_model(folder, decoding, trainer))
    if stage in ("all", "decoder"):
        run(decoding, on_checkpoint=show_reconstructions)
    write_model(folder, decoding, denoising)
    return folder / "model"


def _started(trainer: Trainer, first: dict | None) -> Trainer:
    """Returns the trainer with the state of its checkpoint, or the weights of the parts `first` if it has none."""
    if not trainer.restore() and first is not None:
        trainer.take(first)
    return trainer


def _require_own(folder: Path):
    """Raises `CheckpointError` if training would replace what it did not write, before hours are spent."""
    require_replaceable(folder / "model", "model")
    shown = {"samples.png": "denoiser", **{f"{stage}/reconstructions.png": stage for stage in ("autoencoder", "decoder")}}
    for name, stage in shown.items():
        if (folder / name).exists() and not (folder / stage / "checkpoint.npz").is_file():
            raise CheckpointError(
                f"{folder / name} belongs to no training that can go on: {stage} has no checkpoint. Move it away."
            )


def _denoiser(spec: ModelSpec, folder: Path, compressing: Trainer, seed: int) -> Trainer:
    """Returns the denoiser's trainer; its latents have mean 0 and deviation 1."""
    encoder = build(spec, parts=("encoder",))["encoder"]
    with compressing.averaged() as vae:
        encoder.set_weights(vae.encoder.get_weights())
    mean, deviation = denoiser.latent_statistics(encoder, seed)
    spec = replace(spec, vae=replace(spec.vae, shift=round(mean, 4), scale=round(1 / deviation, 4)))
    return denoiser.trainer(spec, encoder, folder / "denoiser", replace(DENOISER, seed=seed))


def write_model(folder: Path, decoding: Trainer, denoising: Trainer):
    """Writes the averaged weights in float16 as the model folder `folder`/model, with the settings of training."""
    with decoding.averaged() as vae, denoising.averaged() as model:
        parts = {"text_encoder": model.text_encoder, "denoiser": model.denoiser, "decoder": vae.decoder, "encoder": vae.encoder}
        notes = {
            name: {"steps": trainer.step, "pictures": trainer.step * trainer.recipe.batch, "recipe": asdict(trainer.recipe)}
            for name, trainer in (("denoiser", denoising), ("decoder", decoding))
        }
        save_model(folder / "model", model.spec, parts, dtype="float16", notes={"training": notes}, overwrite=True)
    if keras.backend.backend() == "tensorflow":  # which the sampling loop needs, and training does not
        show_samples(folder)


def show_samples(folder: Path, count: int = 16):
    """Writes images by `folder`/model of prompts that training never sees, the same every time: samples.png."""
    from tfsd.api import load

    kinds = itertools.islice(itertools.cycle(scenes.KINDS), count)
    rng = np.random.default_rng(5)
    prompts = [scenes.evaluation_scene(rng, kind).caption for kind in kinds]
    images = load(folder / "model", jit_compile=False).text_to_image(prompts, seed=0)
    contact_sheet(list(zip(images, prompts)), folder / "samples.png")


def show_reconstructions(trainer: Trainer, count: int = 8):
    """Writes images and their reconstructions, one below the other, beside the checkpoint."""
    rng = np.random.default_rng(5)
    images = np.stack([drawing.render(scenes.evaluation_scene(rng, "two")) for _ in range(count)])
    with trainer.averaged() as vae:
        moments = vae.encoder.predict_on_batch(images.astype("float32") / 127.5 - 1.0)
        decoded = vae.decoder.predict_on_batch(moments[..., : moments.shape[-1] // 2])
    decoded = np.clip((decoded + 1.0) * 127.5 + 0.5, 0, 255).astype("uint8")
    with new_file(trainer.folder / "reconstructions.png") as file:
        Image.fromarray(np.concatenate([np.hstack(list(images)), np.hstack(list(decoded))])).save(file, format="PNG")
