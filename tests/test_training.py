"""Training is a function of its seed: batches by step number, and a run that was interrupted ends like one that was not."""

import dataclasses

import numpy as np
import pytest

from tfsd.errors import CheckpointError
from tfsd.models import build
from tfsd.specs import FlowSpec, UNetSpec, VAESpec
from tfsd.storage.model_folders import load_parts, load_spec
from tfsd.training import autoencoder, denoiser, drawing, scenes
from tfsd.training.recipe import CURRICULUM, TrainingRecipe, tiny_spec
from tfsd.training.train import train

TRAINS = True  # see `no_module_leaves_gradients`
SPEC = dataclasses.replace(
    tiny_spec(),
    text=(dataclasses.replace(tiny_spec().text[0], width=16, layers=1, heads=2, mlp_width=32),),
    denoiser=UNetSpec(channels=(16, 16), residuals=1, attention=(False, True), heads=(2, 2), context_width=16, groups=4),
    vae=VAESpec(channels=(8, 8, 8, 8), residuals=1, groups=2),
)
RECIPE = TrainingRecipe(steps=20, batch=2, learning_rate=1e-3, warmup=2)


@pytest.fixture(scope="module", autouse=True)
def small_pool():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoiser, "CHUNK", 8)
        patch.setattr(autoencoder, "CROP", 32)
        yield


@pytest.fixture(scope="module")
def encoder():
    return autoencoder.Autoencoder(SPEC).encoder


@pytest.fixture(scope="module")
def trainer(encoder, tmp_path_factory):
    """A denoiser's trainer, for tests that look at its batches."""
    return denoiser.trainer(SPEC, encoder, tmp_path_factory.mktemp("denoiser"), RECIPE)


@pytest.mark.slow
def test_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    whole = autoencoder.trainer(SPEC, tmp_path / "whole", RECIPE)
    whole.run(steps=14, every=100, progress=False)
    autoencoder.trainer(SPEC, tmp_path / "halves", RECIPE).run(steps=11, every=100, progress=False)
    resumed = autoencoder.trainer(SPEC, tmp_path / "halves", RECIPE)
    assert resumed.restore() and resumed.step == 11
    resumed.run(steps=14, every=100, progress=False)
    for ours, theirs in zip(whole.model.trainable_variables, resumed.model.trainable_variables):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6, err_msg=ours.path)
    for ours, theirs in zip(whole.average, resumed.average):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_batch_depends_on_seed_and_step_alone():
    first, again = autoencoder.crops(RECIPE, 3, 32), autoencoder.crops(RECIPE, 3, 32)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - autoencoder.crops(RECIPE, 4, 32)).max() > 0
    assert np.abs(first - autoencoder.crops(dataclasses.replace(RECIPE, seed=1), 3, 32)).max() > 0


def test_noised_latents_hold_the_image_and_the_target_in_the_proportions_of_v_prediction(trainer):
    (noised, timesteps, tokens), target, _ = trainer.batch(0)
    schedule = denoiser.NoiseSchedule(SPEC.schedule)
    alpha, sigma = (np.reshape(m, (-1, 1, 1, 1)) for m in schedule.marginals(timesteps))
    stored = np.concatenate([chunk[0] for chunk in denoiser_pool(trainer.folder)])
    images = alpha * noised - sigma * target  # Salimans & Ho 2022, appendix D
    for image in images:
        assert np.abs(stored.astype("float32") - image).max(axis=(1, 2, 3)).min() < 1e-3
    assert tokens.shape == (2, SPEC.text[0].length)


def denoiser_pool(folder):
    for path in sorted((folder / "latents").glob("latents-*.npz")):
        with np.load(path) as saved:
            yield saved["latents"], saved["tokens"]


def test_timesteps_of_a_batch_cover_the_whole_schedule(encoder, tmp_path):
    recipe = dataclasses.replace(RECIPE, batch=10)
    trainer = denoiser.trainer(SPEC, encoder, tmp_path, recipe)
    timesteps = np.sort(trainer.batch(1)[0][1])
    assert np.array_equal(timesteps // 100, np.arange(10))


def test_errors_around_objects_weigh_more_and_the_mean_weight_is_one(trainer):
    (noised, *_), _, weights = trainer.batch(0)
    assert weights.shape == noised.shape[:3] and weights.mean() == pytest.approx(1.0, abs=1e-6)
    assert np.max(weights) / np.min(weights) == pytest.approx(denoiser.OBJECT_WEIGHT)


def test_objects_are_where_the_picture_differs_from_its_background():
    scene = scenes.training_scene(np.random.default_rng(0), "pair")
    empty = dataclasses.replace(scene, things=())
    differs = (drawing.render(scene) != drawing.render(empty)).any(axis=-1)
    near = np.kron(drawing.near_objects(scene, 16), np.ones((8, 8), bool))
    assert (differs & near).sum() > 0.98 * differs.sum() and near.sum() < 3 * differs.sum()


def test_the_curriculum_begins_at_once_and_its_shares_add_up():
    assert CURRICULUM[0][0] == 0.0
    for _, stages in CURRICULUM:
        assert sum(stages.values()) == pytest.approx(1.0)


@pytest.mark.slow
def test_training_writes_a_model_folder_that_loads(tmp_path):
    folder = train(tmp_path, steps=2, every=2, progress=False, spec=SPEC)
    spec = load_spec(folder)
    assert spec.vae.scale != SPEC.vae.scale
    assert set(load_parts(folder, spec)) == {"text_encoder", "denoiser", "decoder", "encoder"}
    assert (tmp_path / "autoencoder" / "reconstructions.png").exists()


@pytest.mark.slow
def test_training_can_begin_with_the_weights_of_a_model(tmp_path):
    parts = build(SPEC)
    trainer = denoiser.trainer(SPEC, parts["encoder"], tmp_path / "run", RECIPE)
    trainer.take(parts)
    for ours, theirs in zip(trainer.model.denoiser.weights, parts["denoiser"].weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    autoencoder.trainer(SPEC, tmp_path, RECIPE).save()
    other = dataclasses.replace(SPEC, vae=dataclasses.replace(SPEC.vae, channels=(8, 8, 8, 16)))
    with pytest.raises(ValueError, match="checkpoint of another model"):
        autoencoder.trainer(other, tmp_path, RECIPE).restore()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "vae"}, "stage must be one of"),
        ({"steps": 0}, "steps must be"),
        ({"spec": dataclasses.replace(SPEC, schedule=FlowSpec())}, r"spec\.schedule must be a VPSpec.*; got FlowSpec"),
    ],
)
def test_bad_training_arguments_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **options)


@pytest.mark.parametrize("name", ["samples.png", "autoencoder/reconstructions.png", "model/notes.txt"])
def test_training_replaces_no_file_that_it_did_not_write(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="samples|reconstructions|model is not replaced"):
        train(tmp_path, steps=1, progress=False, spec=SPEC)
    assert path.read_bytes() == b"mine" and list(tmp_path.rglob("*.npz")) == []
