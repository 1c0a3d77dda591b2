"""A second class of denoiser, made here: its spec, its network and one line in the registry, and everything else works.

A real one touches `tfsd/specs/networks.py` (the spec class), a new file in `tfsd/models/` (the network), and
`tfsd/specs/parts.py` (the line in `NETWORKS`); to import weights, also its rule table in `converters/importers/`. Pipeline,
samplers, storage, exports, server and apps stay as they are.
"""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from tfsd.api import load
from tfsd.models import build, kernels
from tfsd.models.layers import Dense, LayerNorm, Network
from tfsd.specs import NETWORKS, CLIPSpec, FlowSpec, ModelSpec, VAESpec, from_json, to_json
from tfsd.specs.checks import within_limits
from tfsd.specs.parts import NetworkKind, PartKind
from tfsd.storage.model_folders import load_spec, save_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerSpec:
    """A denoiser of one attention from latents to the context."""

    width: int = 8
    context_width: int = 16
    latent_channels: int = 4

    def __post_init__(self):
        within_limits(self)


class Mixer(Network):
    """Predicts the velocity. Call: latents [B, h, w, c], timesteps [B], context [B, L, W] -> [B, h, w, c]."""

    def __init__(self, spec: MixerSpec, **kwargs):
        super().__init__(name="mixer", **kwargs)
        self.spec = spec
        self.embed = Dense(3, spec.width, name="embed")
        self.query = Dense(spec.latent_channels, spec.width, name="query")
        self.key = Dense(spec.context_width, spec.width, name="key")
        self.norm = LayerNorm(spec.width, 1e-5, name="norm")
        self.out = Dense(spec.width, spec.latent_channels, name="out")

    def prepare(self, conditioning: dict) -> dict:
        return {"keys": self.key(conditioning["context"])[:, None]}  # not the list that the U-Net makes

    def timestep_features(self, timesteps):
        return ops.cast(timesteps, "float32")[:, None] / 1000.0 * ops.ones((1, 3), "float32")

    def denoise(self, latents, features, prepared: dict):
        batch, height, width, channels = ops.shape(latents)
        x = self.query(ops.reshape(latents, (batch, height * width, channels))) + self.embed(features)[:, None]
        x = x + kernels.attend(x[:, None], prepared["keys"], prepared["keys"])
        return ops.reshape(self.out(self.norm(x)), (batch, height, width, channels))

    def call(self, latents, timesteps, context):
        return self.denoise(latents, self.timestep_features(timesteps), self.prepare({"context": context}))


LINE = NetworkKind(
    "denoiser",
    "mixer",
    (
        PartKind(
            "denoiser",
            "mixer",
            f"{__name__}:Mixer",
            lambda spec: spec.width * (spec.latent_channels + spec.context_width),
            lambda spec, height, width: 2 * height * width * 77,
        ),
    ),
)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(NETWORKS, MixerSpec, LINE)
    return ModelSpec(
        name="mixer",
        text=(CLIPSpec(width=16, layers=1, heads=2, mlp_width=32, kept_tokens=(320, 736, 1565)),),  # a, red, star
        denoiser=MixerSpec(),
        vae=VAESpec(channels=(8, 8, 8, 8), residuals=1, groups=4),
        schedule=FlowSpec(),
        default_size=(32, 32),
        default_sampler="euler",
        default_steps=3,
    )


@pytest.fixture
def folder(registered, tmp_path):
    keras.utils.set_random_seed(0)
    return save_model(tmp_path / "mixer", registered, build(registered))


def test_a_model_with_a_new_denoiser_is_saved_loaded_and_makes_images(registered, folder):
    assert load_spec(folder) == registered == from_json(to_json(registered))
    assert (folder / "mixer.weights.h5").is_file() and not (folder / "unet.weights.h5").exists()
    model = load(folder, jit_compile=False)
    images = model.text_to_image("a red star", seed=3, batch_size=2)
    assert images.shape == (2, 32, 32, 3) and not np.array_equal(images[0], images[1])
    alone = model.text_to_image("a red star", seed=3, index=1)
    assert np.abs(alone[0].astype(int) - images[1]).max() <= 1
    other = model.text_to_image("a", seed=3, batch_size=2, guidance_scale=5.0)
    assert not np.array_equal(images, other), "the context reaches the denoiser"


def test_a_model_with_a_new_denoiser_is_exported_for_tensorflow_serving(folder, tmp_path):
    """The export draws its reference image and compares it with Python's."""
    from tfsd.converters.saved_model.export import export_saved_model
    from tfsd.converters.saved_model.verify_export import verify

    made = export_saved_model(folder, tmp_path / "served", batch_sizes=(1,), max_steps=4, xla=False)
    assert verify(made).same_bytes


@pytest.mark.slow
def test_a_model_with_a_new_denoiser_is_exported_for_phones(folder, tmp_path):
    from tfsd.converters.device.export import export_tflite
    from tfsd.device import DeviceBundle

    bundle = DeviceBundle(export_tflite(folder, tmp_path / "bundle"))
    (drawn,) = bundle.text_to_image("a red star", seed=3, num_steps=2)
    (expected,) = load(folder, jit_compile=False).text_to_image("a red star", seed=3, num_steps=2)
    assert np.abs(drawn.astype(int) - expected).max() <= 1
