"""Measures prompt adherence: images of prompts that training never saw, judged by the automatic checker."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tfsd.api import StableDiffusion, load
from tfsd.arguments.checks import whole
from tfsd.errors import shown, warn
from tfsd.images.files import ImageFileError, check_targets, image_path
from tfsd.text import UnknownWordsWarning, own_prompts, unknown_words
from tfsd.training import checker, scenes
from tfsd.training.contact_sheet import contact_sheet

BATCH = 16
_MAX_LISTED = 10  # words in a warning
GROUPS = {"one": "one object", "two": "two objects", "count": "two or three of a kind"}


def evaluate(
    model: str | Path | StableDiffusion = "tiny",
    n: int = 200,
    seed: int = 0,
    *,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: str | None = None,
    kinds: tuple[str, ...] = scenes.KINDS,
    sheet: str | Path | None = None,
    progress: bool = True,
) -> dict:
    """Returns shares in [0, 1] of what is right in `n` images of each kind of prompt.

    For each kind: "objects" (every object's colour and shape), "colour", "shape" (per object), "count" (no object
    more or less), "relation" (among images whose objects are right), "background", "everything", and "margin",
    half the 95 % interval of "objects". "checker" is the checker's own accuracy on drawings of such scenes.
    `sheet` names a PNG to show the first images in; should it fail after all images were made, "sheet_error" says why.

    Raises: `TypeError`, `ValueError` for a bad `n` or a `sheet` that is not a PNG; `ImageFileError` if it cannot be written.
    """
    n = whole("n", n, 1, 100_000)
    if sheet is not None:
        check_targets([image_path(sheet, "sheet", (".png",))])
    loaded = model if isinstance(model, StableDiffusion) else load(model)
    _warn_of_words(loaded, [prompt for kind in kinds for prompt in prompts_of(kind, n, seed)])
    options = {"seed": seed, "num_steps": num_steps, "guidance_scale": guidance_scale, "sampler": sampler}
    report = {"model": loaded.identity["model"], "weights": loaded.identity["weights"], "n": n, "seed": seed, "kinds": {}}
    draw, images = _drawing_by(loaded, min(BATCH, n), options), []
    with tqdm(total=n * len(kinds), unit="image", disable=None if progress else True) as bar:
        for kind in kinds:
            with own_prompts():
                verdicts, first = judge(draw, kind, n, seed, bar)
            report["kinds"][kind] = _shares(verdicts)
            images += first
    report["checker"] = checker.accuracy(n=500, seed=seed)
    if sheet is not None:
        try:
            contact_sheet(images, sheet)
        except ImageFileError as error:  # a full disk must not cost the report of an hour
            report["sheet_error"] = str(error)
    return report


def _drawing_by(model: StableDiffusion, size: int, options: dict) -> Callable[[list[str], int], np.ndarray]:
    """Returns the `draw` of `judge`, which makes images in batches of one size, so that one program serves all."""

    def draw(prompts: list[str], index: int) -> np.ndarray:
        padded = prompts + prompts[-1:] * (size - len(prompts))
        return model.text_to_image(padded, index=index, **options)[: len(prompts)]

    return draw


def _warn_of_words(model: StableDiffusion, prompts: list[str]):
    """Warns once of all words of an evaluation that a model never learned, since they explain its low shares."""
    if words := unknown_words(model.tokenizer, dict.fromkeys(prompts)):
        listed, name = ", ".join(map(shown, words[:_MAX_LISTED])), shown(model.spec.name)
        listed += f" and {len(words) - _MAX_LISTED} more" if words[_MAX_LISTED:] else ""
        message = f"the prompts of this evaluation have words that {name} never learned, so that it cannot follow them: {listed}."
        warn(message, UnknownWordsWarning)


def prompts_of(kind: str, n: int, seed: int) -> list[str]:
    """Returns the `n` prompts of a kind that an evaluation draws for a seed."""
    rng = np.random.default_rng([seed, scenes.KINDS.index(kind)])
    return [scenes.evaluation_scene(rng, kind).caption for _ in range(n)]


def judge(
    draw: Callable[[list[str], int], np.ndarray], kind: str, n: int, seed: int, bar: tqdm | None = None
) -> tuple[list[checker.Verdict], list[tuple[np.ndarray, str]]]:
    """Returns the verdicts on `n` images of a kind of prompt, and the first sixteen (image, prompt).

    `draw(prompts, index)` makes the images of at most `BATCH` prompts; `index` is the first one's, the next follow it.
    """
    prompts, verdicts, first = prompts_of(kind, n, seed), [], []
    for i in range(0, n, BATCH):
        batch = prompts[i : i + BATCH]
        images = draw(batch, i)
        first += list(zip(images, batch))[: 16 if i == 0 else 0]
        verdicts += [checker.check(np.asarray(image), prompt) for image, prompt in zip(images, batch)]
        if bar is not None:
            bar.update(len(batch))
    return verdicts, first


def _shares(verdicts: list[checker.Verdict]) -> dict[str, float]:
    objects = np.mean([v.objects for v in verdicts])
    related = [v.relation for v in verdicts if v.objects]
    shares = {
        "objects": objects,
        "colour": np.mean([right for v in verdicts for right in v.colours]),
        "shape": np.mean([right for v in verdicts for right in v.shapes]),
        "count": np.mean([v.count for v in verdicts]),
        "relation": np.mean(related) if related else 0.0,
        "background": np.mean([v.background for v in verdicts]),
        "everything": np.mean([v.everything for v in verdicts]),
        "margin": 1.96 * math.sqrt(max(objects * (1 - objects), 1e-9) / len(verdicts)),
    }
    return {name: round(float(share), 4) for name, share in shares.items()}


def as_text(report: dict) -> str:
    """Returns a report as a table for people."""
    names = ("objects", "colour", "shape", "count", "relation", "background", "everything")
    lines = [f"{report['model']}: {report['n']} prompts of each kind that training never saw, seed {report['seed']}", ""]
    lines.append(f"{'':24}" + "".join(f"{name:>12}" for name in names))
    for kind, shares in report["kinds"].items():
        lines.append(f"{GROUPS[kind]:24}" + "".join(f"{100 * shares[name]:>11.1f}%" for name in names))
    clean = report["checker"]["clean"]
    lines += ["", f"The checker itself finds the objects in {100 * clean['objects']:.1f}% of drawings of such scenes."]
    return "\n".join(lines)
