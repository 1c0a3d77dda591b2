"""The grammar of the captioned scenes on which the embedded model is trained: what is shown, and the words for it.

A scene is one object, two or three equal objects, or two objects in a relation, before one of fourteen backgrounds.
`drawing.render` paints it and `checker.check` looks for it in an image.
"""

import dataclasses
import hashlib

import numpy as np

from tfsd.errors import shown

SHAPES = {  # singular -> plural
    "ball": "balls",
    "boat": "boats",
    "car": "cars",
    "cat": "cats",
    "cup": "cups",
    "fish": "fish",
    "flower": "flowers",
    "heart": "hearts",
    "house": "houses",
    "moon": "moons",
    "mushroom": "mushrooms",
    "rocket": "rockets",
    "star": "stars",
    "tree": "trees",
}
COLOURS = {  # the main colour of an object, RGB in [0, 255]
    "red": (222, 40, 44),
    "orange": (255, 138, 20),
    "yellow": (252, 216, 44),
    "green": (58, 172, 72),
    "blue": (44, 98, 228),
    "purple": (134, 62, 190),
    "pink": (252, 140, 190),
    "brown": (134, 84, 48),
    "white": (246, 246, 246),
    "black": (48, 48, 56),
}
BACKGROUNDS = {  # the phrases that name it; an empty phrase never stands here
    "sea": ("in the sea", "on the sea"),
    "grass": ("on the grass", "in a meadow"),
    "night": ("at night", "under the stars"),
    "snow": ("in the snow",),
    "desert": ("in the desert",),
    "forest": ("in the forest", "in a forest"),
    "mountains": ("in the mountains",),
    "sky": ("in the sky", "in the clouds"),
    "sunset": ("at sunset",),
    "beach": ("on the beach",),
    "white": ("on a white background",),
    "grey": ("on a grey background", "on a gray background"),
    "blue": ("on a blue background",),
    "yellow": ("on a yellow background",),
}
SIZES = {  # radius as a fraction of the image's side, when the caption says so; "medium" is what an unsaid size means
    "small": (17 / 128, 19.5 / 128),
    "medium": (22 / 128, 27 / 128),
    "large": (31 / 128, 38 / 128),
}
SIZE_WORDS = {"small": ("small", "little"), "medium": (), "large": ("large", "big")}
RELATIONS = {  # the first object stands ... the second
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "next": ("next to", "beside"),
    "and": ("and",),
}
OPENINGS = ("a picture of", "a photo of", "a drawing of", "an image of")
NUMBERS = {1: "one", 2: "two", 3: "three"}
STAGES = ("single", "count", "pair", "all")
KINDS = ("one", "two", "count")
HELD_OUT = 0.1  # share of the prompts kept for evaluation
_MARGIN = 4 / 128
_PAIR_RADII = 52 / 128  # two radii at most, which leaves 16 of 128 pixels between two objects and both margins


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object of a scene: `x`, `y` its centre and `size` its radius, as fractions of the image's side."""

    shape: str
    colour: str
    size: float
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """What an image shows and the caption that says it; `relation` is None unless two objects are named."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None
    caption: str


@dataclasses.dataclass(frozen=True)
class Expectation:
    """What a caption promises: (shape, colour) of each object; None where the caption leaves it open."""

    things: tuple[tuple[str, str | None], ...]
    relation: str | None = None
    background: str | None = None
    sizes: tuple[str | None, ...] = ()


def sample_scene(rng: np.random.Generator, stage: str = "all") -> Scene:
    """Draws a scene of a stage of the curriculum: "single", "count", "pair", or "all", which mixes them.

    Raises:
        ValueError: the stage is unknown.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {shown(stage)}.")
    if stage == "all":
        stage = ("single", "count", "pair")[rng.choice(3, p=(0.3, 0.15, 0.55))]
    background = _pick(rng, BACKGROUNDS)
    place = " " + _pick(rng, BACKGROUNDS[background]) if rng.random() < 0.75 else ""
    opening = _pick(rng, OPENINGS) + " " if rng.random() < 0.25 else ""
    things, relation, words = {"single": _single, "count": _count, "pair": _pair}[stage](rng)
    return Scene(things, background, relation, opening + words + place)


def training_scene(rng: np.random.Generator, stage: str = "all") -> Scene:
    """Draws a scene of `stage` whose prompt is not held out for evaluation."""
    while True:
        scene = sample_scene(rng, stage)
        if not held_out(scene):
            return scene


def evaluation_scene(rng: np.random.Generator, kind: str) -> Scene:
    """Draws a scene whose prompt training never sees: "one" object, "two" objects, or a "count" of two or three.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {shown(kind)}.")
    stage = {"one": "single", "two": "pair", "count": "count"}[kind]
    while True:
        scene = sample_scene(rng, stage)
        expected = parse(scene.caption)
        enough = len(expected.things) > 1 or kind != "count"
        if enough and all(colour for _, colour in expected.things) and _is_kept(expected):
            return scene


def held_out(scene: Scene) -> bool:
    """Whether a scene is kept for evaluation: what its caption says, or what the image shows, is held out.

    Kept are a tenth of the (number, shape, colour, background) combinations, "no background" being one of them,
    and a tenth of the unordered pairs of (shape, colour), whatever their relation and background.
    """
    expected = parse(scene.caption)
    shown = tuple((thing.shape, thing.colour) for thing in scene.things)
    return _is_kept(expected) or _is_kept(Expectation(shown, scene.relation, scene.background))


def _is_kept(expected: Expectation) -> bool:
    words = sorted(f"{colour} {shape}" for shape, colour in expected.things)
    if len(set(words)) == 1:
        words.append(str(expected.background))
    digest = hashlib.sha256("|".join(words).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32


def parse(caption: str) -> Expectation:
    """Reads a caption of this grammar back; case and surrounding spaces do not matter.

    Raises:
        ValueError: the caption is not one that the grammar can utter.
    """
    words = " ".join(caption.lower().split()).rstrip(".")
    for opening in OPENINGS:
        words = words.removeprefix(opening + " ")
    words, background = _split_end(words)
    first, size, rest, number = _read_thing(words, caption)
    if not rest:
        return Expectation((first,) * number, None, background, (size,) * number)
    for relation, phrases in RELATIONS.items():
        for phrase in phrases:
            if number == 1 and rest.startswith(phrase + " "):
                second, second_size, rest, number = _read_thing(rest[len(phrase) + 1 :], caption)
                if not rest and number == 1:
                    return Expectation((first, second), relation, background, (size, second_size))
    raise ValueError(_unreadable(caption))


def vocabulary() -> list[str]:
    """All the words that captions are made of, sorted."""
    phrases = [*SHAPES, *SHAPES.values(), *COLOURS, *OPENINGS, *NUMBERS.values(), "a", "an"]
    for table in (BACKGROUNDS, SIZE_WORDS, RELATIONS):
        phrases.extend(phrase for group in table.values() for phrase in group)
    return sorted({word for phrase in phrases for word in phrase.split()})


def _unreadable(caption: str) -> str:
    return f"caption must be one that the scene grammar can utter, such as 'a red star at night'; got {shown(caption)}."


def _split_end(words: str) -> tuple[str, str | None]:
    for background, phrases in BACKGROUNDS.items():
        for phrase in phrases:
            if words.endswith(" " + phrase):
                return words.removesuffix(" " + phrase), background
    return words, None


def _read_thing(words: str, caption: str) -> tuple[tuple[str, str | None], str | None, str, int]:
    """Reads "a small red star" off the front: (shape, colour), size, the words that follow, the number."""
    article, *rest = words.split() or [""]
    number = {"a": 1, "an": 1, **{word: n for n, word in NUMBERS.items()}}.get(article)
    size = next((name for name, said in SIZE_WORDS.items() if rest and rest[0] in said), None)
    rest = rest[1:] if size else rest
    colour = rest[0] if rest and rest[0] in COLOURS else None
    rest = rest[1:] if colour else rest
    shapes = {(plural if number and number > 1 else singular): singular for singular, plural in SHAPES.items()}
    if number is None or not rest or rest[0] not in shapes:
        raise ValueError(_unreadable(caption))
    return (shapes[rest[0]], colour), size, " ".join(rest[1:]), number


def _pick(rng: np.random.Generator, choices):
    choices = tuple(choices)
    return choices[int(rng.integers(len(choices)))]


def _draw_size(rng: np.random.Generator) -> tuple[str, str]:
    """A size and the word for it: most captions say none."""
    size = ("medium", "small", "large")[rng.choice(3, p=(0.7, 0.15, 0.15))]
    return size, _pick(rng, SIZE_WORDS[size]) if SIZE_WORDS[size] else ""


def _noun_phrase(number: str, size: str, colour: str, noun: str) -> str:
    words = [word for word in (size, colour, noun) if word]
    if number == "a" and words[0][0] in "aeiou":
        number = "an"
    return " ".join([number, *words])


def _single(rng: np.random.Generator):
    shape, colour = _pick(rng, SHAPES), _pick(rng, COLOURS)
    size, word = _draw_size(rng)
    radius = rng.uniform(*SIZES[size])
    reach = radius + _MARGIN
    x, y = rng.uniform(max(reach, 0.3), min(1 - reach, 0.7)), rng.uniform(max(reach, 0.35), min(1 - reach, 0.72))
    said = colour if rng.random() > 0.04 else ""
    number = "one" if rng.random() < 0.05 else "a"
    return (Thing(shape, colour, radius, x, y),), None, _noun_phrase(number, word, said, shape)


def _count(rng: np.random.Generator):
    shape, colour, number = _pick(rng, SHAPES), _pick(rng, COLOURS), 2 + int(rng.integers(2))
    places: tuple[tuple[float, float], ...]
    layout = int(rng.integers(3))  # a row, or a triangle with its point down or up; for two a row or a slope
    if number == 2:
        radius, slope = rng.uniform(20, 25), (0, 14, -14)[layout]
        places = ((34, 68 - slope), (94, 68 + slope))
    elif layout == 0:
        radius, places = rng.uniform(16.5, 17.2), ((22.5, 68), (64, 68), (105.5, 68))
    else:
        radius, turn = rng.uniform(17.5, 20.5), (1 if layout == 1 else -1)
        places = ((36, 66 - 25 * turn), (92, 66 - 25 * turn), (64, 66 + 25 * turn))
    jitter = 0.5 if number == 3 and layout == 0 else 2.5
    spots = np.asarray(places) + rng.uniform(-jitter, jitter, (number, 2))
    things = tuple(Thing(shape, colour, radius / 128, float(x) / 128, float(y) / 128) for x, y in spots)
    return things, None, _noun_phrase(NUMBERS[number], "", colour, SHAPES[shape])


def _pair(rng: np.random.Generator):
    looks = [(_pick(rng, SHAPES), _pick(rng, COLOURS)) for _ in range(2)]
    while looks[0] == looks[1]:
        looks[1] = (_pick(rng, SHAPES), _pick(rng, COLOURS))
    sizes, words = zip(*(_draw_size(rng) for _ in range(2)))
    radii = np.asarray([rng.uniform(*SIZES[size]) for size in sizes])
    radii = np.maximum(radii * min(1.0, _PAIR_RADII / radii.sum()), SIZES["small"][0])
    relation = _pick(rng, RELATIONS)
    phrase = _pick(rng, RELATIONS[relation])
    (x1, y1), (x2, y2) = _place_pair(rng, relation, radii)
    things = (Thing(*looks[0], float(radii[0]), x1, y1), Thing(*looks[1], float(radii[1]), x2, y2))
    nouns = [_noun_phrase("a", word, colour, shape) for word, (shape, colour) in zip(words, looks)]
    return things, relation, f"{nouns[0]} {phrase} {nouns[1]}"


def _place_pair(rng: np.random.Generator, relation: str, radii: np.ndarray):
    """Two centres on one axis, a little off it sideways; neither touches the other nor the edge."""
    upright = relation in ("above", "below")
    swapped = relation in ("right", "below") or (relation in ("and", "next") and rng.random() < 0.5)
    near, far = radii[::-1] if swapped else radii
    free = 1 - 2 * _MARGIN - 2 * (near + far)
    gap = rng.uniform(min(8 / 128, free), free)
    start = _MARGIN + rng.uniform(0, free - gap)
    along = (start + near, start + 2 * near + gap + far)
    middle = 0.5 if upright else 0.56
    across = (middle + rng.uniform(-0.06, 0.06), middle + rng.uniform(-0.06, 0.06))
    first, second = [(float(c), float(a)) if upright else (float(a), float(c)) for a, c in zip(along, across)]
    return (second, first) if swapped else (first, second)
