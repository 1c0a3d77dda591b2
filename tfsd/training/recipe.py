"""The embedded model `tiny`: its sizes, and the settings it is trained with."""

from dataclasses import dataclass

from tfsd.specs import CLIPSpec, ModelSpec, UNetSpec, VAESpec, VPSpec
from tfsd.text import Tokenizer
from tfsd.training import scenes


def tiny_spec() -> ModelSpec:
    """Returns the spec of the embedded model: Stable Diffusion's architecture, with a two-hundredth of its weights.

    Its token embedding has rows for the words of the scenes' grammar alone; all others share one.
    """
    words = sorted(set(Tokenizer().encode(" ".join(scenes.vocabulary()))))
    return ModelSpec(
        name="tiny",
        text=(CLIPSpec(width=128, layers=2, heads=4, mlp_width=512, kept_tokens=tuple(words)),),
        denoiser=UNetSpec(
            channels=(48, 80, 96),
            residuals=1,
            attention=(False, True, True),
            heads=(4, 4, 4),
            context_width=128,
            groups=16,
        ),
        vae=VAESpec(channels=(16, 32, 64, 64), residuals=1, groups=2),
        schedule=VPSpec(prediction="v", spacing="trailing", steps_offset=0),
        default_size=(128, 128),
        default_sampler="ddim",
        default_steps=20,
        default_guidance=3.0,
        licence="Apache-2.0",
    )


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """The settings of one training stage. Step i of a seed always sees the same batch."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 200
    cooldown: float = 0.2  # share of the steps at the end over which the rate falls to zero
    weight_decay: float = 1e-4
    ema: float = 0.999
    clip_norm: float = 1.0
    seed: int = 0

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step: a ramp, a plateau, a straight line to zero."""
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.learning_rate * max(0.0, min(1.0, (step + 1) / self.warmup, left))


AUTOENCODER = TrainingRecipe(steps=2800, batch=8, learning_rate=2e-3)
DECODER = TrainingRecipe(steps=8000, batch=4, learning_rate=1e-3)
DENOISER = TrainingRecipe(steps=60000, batch=32, learning_rate=1e-3)
CURRICULUM = (  # (share of the steps after which it begins, stage of the scenes -> probability)
    (0.0, {"single": 0.85, "pair": 0.15}),  # shapes are learned sooner from one large object
    (0.25, {"single": 0.35, "count": 0.15, "pair": 0.5}),
)
