"""Measures how often images of the included model show what their prompts say, in float32 and as exported."""

import functools
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tfsd.arguments.checks import whole
from tfsd.specs import ModelSpec
from tfsd.training.evaluate import judge
from tfsd.training.recipe import tiny_spec

KINDS = ("one", "two")  # objects in a prompt, as in `tfsd.training.scenes`
_CERTAINTY = 1.96  # standard errors on both sides of a mean within which the truth is in 95 %


class ImageMaker(Protocol):
    """Makes images from prompts: a `StableDiffusion` or a `DeviceBundle`."""

    def text_to_image(self, prompt: Sequence[str], *, seed: int, index: int, num_steps: int) -> np.ndarray:
        """Returns images uint8 [B, H, W, 3]."""


def can_be_judged(spec: ModelSpec, size: Sequence[int]) -> bool:
    """Returns whether the checker can judge a model's images of `size`: it needs the words and the size of the scenes."""
    return spec.text[0].kept_tokens == tiny_spec().text[0].kept_tokens and tuple(size) == tuple(spec.default_size)


def measure_adherence(ours: ImageMaker, theirs: ImageMaker, count: int = 96, seed: int = 0, *, num_steps: int = 10) -> dict:
    """Returns the share of images with all objects right, by the checker, for an export and for float32.

    Both make images of the same `count` prompts of each kind, which training never saw, from the same noise. "kinds": for each of
    `KINDS`, and "all" for both together: "count", "before" and "after" as shares in [0, 1], "lost" and "gained" prompts,
    "difference" in points (below 0: the export is worse) and "margin", half of its 95 % interval, the prompts being paired.

    Raises: `TypeError`, `ValueError` for a bad `count`, and as `text_to_image`.
    """
    count = whole("count", count, 1, 100_000)
    before: dict[str, np.ndarray] = {}
    after: dict[str, np.ndarray] = {}
    for right, maker in ((before, theirs), (after, ours)):
        draw = functools.partial(_draw, maker, seed, num_steps)
        for kind in KINDS:
            verdicts, _ = judge(draw, kind, count, seed)
            right[kind] = np.array([verdict.objects for verdict in verdicts])
    kinds = {kind: _paired(before[kind], after[kind]) for kind in KINDS}
    both = _paired(*(np.concatenate([right[kind] for kind in KINDS]) for right in (before, after)))
    return {"seed": seed, "num_steps": num_steps, "kinds": kinds, "all": both}


def _draw(maker: ImageMaker, seed: int, num_steps: int, prompts: list[str], index: int) -> np.ndarray:
    return maker.text_to_image(prompts, seed=seed, index=index, num_steps=num_steps)


def _paired(before: np.ndarray, after: np.ndarray) -> dict:
    """Compares the results for the same prompts. Source: the variance of a difference of paired shares, Newcombe 1998."""
    count, lost, gained = len(before), int(np.sum(before & ~after)), int(np.sum(after & ~before))
    variance = (lost + gained - (gained - lost) ** 2 / count) / count**2
    return {
        "count": count,
        "before": float(before.mean()),
        "after": float(after.mean()),
        "lost": lost,
        "gained": gained,
        "difference": 100 * (gained - lost) / count,
        "margin": 100 * _CERTAINTY * math.sqrt(variance),
    }
