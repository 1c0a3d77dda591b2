"""How often the pictures of the embedded model show what their prompts say, before it was exported and after."""

import functools
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tfsd.arguments.checks import whole
from tfsd.specs import ModelSpec
from tfsd.training.evaluate import judge
from tfsd.training.recipe import tiny_spec

KINDS = ("one", "two")  # of `tfsd.training.scenes`: objects in a prompt
_CERTAINTY = 1.96  # standard errors on both sides of a mean within which the truth is in 95 %


class Drawer(Protocol):
    """What draws pictures of prompts: a `StableDiffusion` or a `DeviceBundle`."""

    def text_to_image(self, prompt: Sequence[str], *, seed: int, index: int, num_steps: int) -> np.ndarray:
        """Returns pictures uint8 [B, H, W, 3]."""


def can_be_judged(spec: ModelSpec, size: Sequence[int]) -> bool:
    """Tells whether the checker can read a model's pictures of `size`: it knows the words of the scenes, in their own size."""
    return spec.text.kept_tokens == tiny_spec().text.kept_tokens and tuple(size) == tuple(spec.default_size)


def measure_adherence(ours: Drawer, theirs: Drawer, count: int = 96, seed: int = 0, *, num_steps: int = 10) -> dict:
    """Returns which share of an export's pictures and of those in float32 have all their objects right, by the checker.

    Both draw the same `count` prompts of each kind, which training never saw, from the same noise. "kinds": for each of
    `KINDS`, and "all" for both together: "count", "before" and "after" as shares in [0, 1], "lost" and "gained" prompts,
    "difference" in points (below 0: the export is worse) and "margin", half of its 95 % interval, the prompts being paired.

    Raises: `TypeError`, `ValueError` for a bad `count`, and as `text_to_image`.
    """
    count = whole("count", count, 1, 100_000)
    before, after = {}, {}
    for right, drawer in ((before, theirs), (after, ours)):
        draw = functools.partial(_draw, drawer, seed, num_steps)
        for kind in KINDS:
            verdicts, _ = judge(draw, kind, count, seed)
            right[kind] = np.array([verdict.objects for verdict in verdicts])
    kinds = {kind: _paired(before[kind], after[kind]) for kind in KINDS}
    both = _paired(*(np.concatenate([right[kind] for kind in KINDS]) for right in (before, after)))
    return {"seed": seed, "num_steps": num_steps, "kinds": kinds, "all": both}


def _draw(drawer: Drawer, seed: int, num_steps: int, prompts: list[str], index: int) -> np.ndarray:
    return drawer.text_to_image(prompts, seed=seed, index=index, num_steps=num_steps)


def _paired(before: np.ndarray, after: np.ndarray) -> dict:
    """Compares what was right of the same prompts. Source: the variance of a difference of paired shares, Newcombe 1998."""
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
