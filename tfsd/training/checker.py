"""Measures whether an image shows what its prompt says, for the scenes that `scenes` describes and `drawing` paints.

The nearest known background is taken away; what is left falls into connected parts; each part is compared with
templates of all shapes and colours. Numpy alone, a few milliseconds an image. `accuracy` measures the checker itself.
"""

import dataclasses
import functools
import itertools
import operator

import numpy as np

from tfsd.training.drawing import background, paint, render
from tfsd.training.scenes import BACKGROUNDS, COLOURS, SHAPES, Expectation, Scene, Thing, parse, sample_scene

_GRID = 24  # templates are compared on 24 x 24 cells
_TEMPLATE_RADII = (17 / 128, 24 / 128, 34 / 128)  # the outline is thicker on small objects, so their templates differ
_CALM = 30  # levels from which a pixel counts as object when the colour cast of the background is measured
_THRESHOLDS = (25, 40, 60, 15)  # levels that part objects from background, tried until every part fits a template well
_GOOD_FIT = 0.75  # drawings score 0.74 to 0.95, blurred by one pixel 0.69 and more; merged objects and shreds below 0.5
_SOFT_EDGE = 1  # pixels of 128 by which the lines of a background may be displaced or blurred
_MOST_PARTS = 6
_SMALLEST = 120 / 128**2  # smaller parts are specks; the smallest object has three times this share of the image
_LEAST_FIT = 0.6  # below, a part has no known shape: three of four random blobs
_FARTHEST_COLOUR = 60.0  # mean difference in levels above which a part has no known colour


@dataclasses.dataclass(frozen=True)
class Found:
    """One object seen in an image; `x`, `y`, `size` as in `scenes.Thing`, None where nothing known fits."""

    shape: str | None
    colour: str | None
    size: float
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What of an expectation an image fulfils; `shapes` and `colours` follow the order of the expected things.

    `relation` is right only where the things it relates are; what the prompt leaves open counts as right.
    """

    shapes: tuple[bool, ...]
    colours: tuple[bool, ...]
    count: bool
    relation: bool
    background: bool
    found: tuple[Found, ...]
    found_background: str

    @property
    def objects(self) -> bool:
        """Whether each expected thing is there in its shape and its colour."""
        return all(self.shapes) and all(self.colours)

    @property
    def everything(self) -> bool:
        """Whether the image shows all that the prompt says, and no object more."""
        return self.objects and self.count and self.relation and self.background


def check(image: np.ndarray, expected: Scene | Expectation | str) -> Verdict:
    """Compares an image with a scene (all that it shows), with an expectation, or with a prompt of the grammar.

    Args:
        image: uint8 [H, H, 3].

    Raises:
        ValueError: the image is of another kind, or the prompt is not one of the grammar.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 [H, H, 3]; got {image.dtype} {list(image.shape)}. Pass one square image.")
    if isinstance(expected, str):
        expected = parse(expected)
    elif isinstance(expected, Scene):
        expected = Expectation(tuple((t.shape, t.colour) for t in expected.things), expected.relation, expected.background)
    found, place = look(image)
    shapes, colours, relation = _match(expected, found)
    return Verdict(
        shapes=shapes,
        colours=colours,
        count=len(found) == len(expected.things),
        relation=relation,
        background=expected.background in (None, place),
        found=found,
        found_background=place,
    )


def look(image: np.ndarray) -> tuple[tuple[Found, ...], str]:
    """Names the objects and the background of an image, the largest object first.

    Low thresholds may join neighbours, high ones tear objects that resemble the background: a few are tried, and where none
    makes all parts look like known objects, that one counts which explains the largest area best.
    """
    size = image.shape[0]
    place = _nearest_background(image)
    difference = image - background(place, size)
    calm = np.abs(difference).max(axis=-1) < _CALM
    tint = np.clip(np.median(difference[calm], axis=0), -16, 16) if calm.any() else np.zeros(3, np.float32)
    low, high = _background_range(place, size)
    untinted = image - tint
    difference = np.abs(untinted - np.clip(untinted, low, high)).max(axis=-1)
    best = -np.inf
    found: tuple[Found, ...] = ()
    for threshold in _THRESHOLDS:
        parts = _parts(difference > threshold)
        named = [_name(untinted, part) for part in parts]
        if all(fit > _GOOD_FIT for _, fit in named) and named:
            return tuple(thing for thing, _ in named), place
        score = sum(part.sum() * max(fit, 0) ** 3 for part, (_, fit) in zip(parts, named))
        if score > best:
            best, found = score, tuple(thing for thing, _ in named)
    return found, place


def _parts(mask: np.ndarray) -> list[np.ndarray]:
    """The masks of the parts that are large enough to be objects, the largest first."""
    labels, count = components(_open(_fill(mask)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    largest = np.argsort(-areas, kind="stable")[:_MOST_PARTS]
    return [labels == i + 1 for i in largest if areas[i] >= _SMALLEST * mask.size]


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the parts of a mask that are connected by edges: labels int [H, W], 0 outside, and how many there are."""
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    step = np.diff(padded, axis=1)
    stride = width + 1
    starts, ends = np.flatnonzero(step == 1), np.flatnonzero(step == -1)  # runs, as row * stride + column
    first = np.searchsorted(ends, starts + stride, side="right")
    last = np.searchsorted(starts, ends + stride, side="left")
    parent = list(range(len(starts)))
    for run, (low, high) in enumerate(zip(first.tolist(), last.tolist())):
        for below in range(low, high):
            parent[_root(parent, below)] = _root(parent, run)
    roots, numbers = np.unique([_root(parent, run) for run in parent], return_inverse=True)
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = np.repeat(numbers + 1, ends - starts)
    return labels, len(roots)


def degrade(
    image: np.ndarray, rng: np.random.Generator, *, blur: float = 1.0, noise: float = 4.0, tint: float = 6.0
) -> np.ndarray:
    """Spoils a drawing as a small decoder does: Gaussian blur (pixels), noise and a colour cast (levels), in this order."""
    taps = np.exp(-0.5 * (np.arange(-4, 5) / blur) ** 2)
    padded = np.pad(image.astype(np.float32), ((4, 4), (4, 4), (0, 0)), mode="edge")
    for axis in (0, 1):
        length = image.shape[axis]
        padded = sum(tap * np.take(padded, np.arange(i, i + length), axis) for i, tap in enumerate(taps / taps.sum()))
    cast = rng.uniform(-tint, tint, 3)
    return np.clip(padded + cast + rng.normal(0, noise, image.shape), 0, 255).round().astype(np.uint8)


def accuracy(n: int = 500, seed: int = 0) -> dict[str, dict[str, float]]:
    """The checker's own accuracy: the shares of drawings in which it finds what was drawn.

    Returns: for "clean" and "degraded" drawings, and for drawings checked against the prompt of the "shuffled" next one,
    the share with all objects, the count, the relation, the background and everything right.
    """
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(n)]
    parts = ("objects", "count", "relation", "background", "everything")
    shares = {case: dict.fromkeys(parts, 0.0) for case in ("clean", "degraded", "shuffled")}
    for scene, other in zip(scenes, scenes[1:] + scenes[:1]):
        image = render(scene)
        verdicts = {"clean": check(image, scene), "degraded": check(degrade(image, rng), scene), "shuffled": check(image, other)}
        for case, verdict in verdicts.items():
            for part in parts:
                shares[case][part] += getattr(verdict, part) / n
    return {case: {part: round(share, 6) for part, share in of_case.items()} for case, of_case in shares.items()}


def _nearest_background(image: np.ndarray) -> str:
    """Differences are cut off, so that the objects, wherever they are, weigh alike for all backgrounds."""
    every = image.shape[0] // 32 or 1
    rows = image[every // 2 :: every, every // 2 :: every].astype(np.float32)
    difference = np.abs(_small_backgrounds(image.shape[0], every) - rows).max(axis=-1)
    return tuple(BACKGROUNDS)[int(np.minimum(difference, 48).mean(axis=(1, 2)).argmin())]


@functools.lru_cache(maxsize=4)
def _small_backgrounds(size: int, every: int) -> np.ndarray:
    return np.stack([background(name, size)[every // 2 :: every, every // 2 :: every] for name in BACKGROUNDS])


@functools.lru_cache(maxsize=64)
def _background_range(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest value around each pixel of a background: the soft edge of a cloud is not an object."""
    reach = max(1, round(_SOFT_EDGE * size / 128))
    padded = np.pad(background(name, size), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1), axis=(0, 1))
    return windows.min(axis=(-2, -1)), windows.max(axis=(-2, -1))


def _fill(mask: np.ndarray) -> np.ndarray:
    """A mask with its holes closed: objects of their background's colour show by their outline alone."""
    outside, _ = components(~np.pad(mask, 1))
    return (outside != outside[0, 0])[1:-1, 1:-1]


def _open(mask: np.ndarray) -> np.ndarray:
    """A mask without what is thinner than three pixels, such as the soft edges of hills."""
    return _grow(~_grow(~mask))


def _grow(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1, mode="edge")
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _root(parent: list[int], run: int) -> int:
    while parent[run] != run:
        parent[run] = run = parent[parent[run]]
    return run


def _cells(values: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """A part's bounding box on the grid of the templates, each cell the mean of four samples."""
    fractions = (np.arange(2 * _GRID) + 0.5) / (2 * _GRID)
    rows, columns = (top + fractions * (bottom - top)).astype(int), (left + fractions * (right - left)).astype(int)
    samples = values[rows[:, None], columns[None, :]].astype(np.float32)
    return samples.reshape(_GRID, 2, _GRID, 2, *values.shape[2:]).mean(axis=(1, 3))


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


@functools.cache
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Silhouettes [S, R, G, G], log aspect ratios [S, R] and images [S, R, C, G, G, 3] of all shapes and colours."""
    silhouettes = np.zeros((len(SHAPES), len(_TEMPLATE_RADII), _GRID, _GRID), np.float32)
    ratios = np.zeros(silhouettes.shape[:2], np.float32)
    pictures = np.zeros((*silhouettes.shape[:2], len(COLOURS), _GRID, _GRID, 3), np.float32)
    combinations = itertools.product(enumerate(SHAPES), enumerate(_TEMPLATE_RADII), enumerate(COLOURS))
    for (s, shape), (r, radius), (c, colour) in combinations:
        canvas = np.full((128, 128, 3), (255, 0, 255), np.float32)  # magenta: no colour of ours, not even of a sail
        paint(canvas, Thing(shape, colour, radius, 0.5, 0.5))
        mask = _fill(np.abs(canvas - (255, 0, 255)).max(axis=-1) > 100)
        top, bottom, left, right = _box(mask)
        silhouettes[s, r] = _cells(mask, top, bottom, left, right)
        ratios[s, r] = np.log((right - left) / (bottom - top))
        pictures[s, r, c] = _cells(canvas, top, bottom, left, right)
    return silhouettes, ratios, pictures


def _name(image: np.ndarray, mask: np.ndarray) -> tuple[Found, float]:
    """Compares one part with the templates, first silhouettes, then for the best ones what is inside; and how well it fits."""
    silhouettes, ratios, pictures = _templates()
    top, bottom, left, right = _box(mask)
    size = image.shape[0]
    extent, x, y = max(bottom - top, right - left) / 2 / size, (left + right) / 2 / size, (top + bottom) / 2 / size
    silhouette, picture = _cells(mask, top, bottom, left, right), _cells(image, top, bottom, left, right)
    overlap = np.minimum(silhouettes, silhouette).sum((2, 3)) / np.maximum(silhouettes, silhouette).sum((2, 3))
    fit = overlap - 0.4 * np.abs(ratios - np.log((right - left) / (bottom - top)))
    likely = np.argsort(-fit, axis=None)[:5]
    best = -np.inf
    name: tuple[str | None, str | None] = (None, None)
    for s, r in zip(*np.unravel_index(likely, fit.shape)):
        weight = silhouettes[s, r] * silhouette
        errors = (np.minimum(np.abs(pictures[s, r] - picture).mean(axis=-1), 90) * weight).sum((1, 2)) / max(weight.sum(), 1)
        c = int(errors.argmin())
        score = fit[s, r] - 0.004 * errors[c]
        if score > best:
            shape = tuple(SHAPES)[s] if score >= _LEAST_FIT else None
            best, name = score, (shape, tuple(COLOURS)[c] if errors[c] <= _FARTHEST_COLOUR else None)
    return Found(*name, extent, x, y), float(best)


def _match(expected: Expectation, found: tuple[Found, ...]) -> tuple[tuple[bool, ...], tuple[bool, ...], bool]:
    """The assignment of found to expected things that gets the most right: shapes, colours, relation."""
    candidates = [*found, *[None] * len(expected.things)]
    results = []
    for chosen in itertools.permutations(candidates, len(expected.things)):
        shapes = tuple(f is not None and f.shape == shape for f, (shape, _) in zip(chosen, expected.things))
        colours = tuple(f is not None and colour in (None, f.colour) for f, (_, colour) in zip(chosen, expected.things))
        right = all(shapes) and all(colours)
        named = [f for f in chosen if f is not None]
        relation = expected.relation is None or (right and _related(expected.relation, *named))
        score = (sum(map(min, shapes, colours)), relation, sum(shapes), sum(colours))
        results.append((score, (shapes, colours, relation)))
    return max(results, key=operator.itemgetter(0))[1]  # the first of the best


def _related(relation: str, first: Found, second: Found) -> bool:
    dx, dy = second.x - first.x, second.y - first.y
    beside = abs(dx) > abs(dy)
    sideways = {"left": beside and dx > 0, "right": beside and dx < 0, "next": beside}
    upright = {"above": not beside and dy > 0, "below": not beside and dy < 0}
    return {**sideways, **upright, "and": True}[relation]
