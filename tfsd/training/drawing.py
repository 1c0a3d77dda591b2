"""Paints scenes with numpy alone: anti-aliased figures with outline and shading before fixed backgrounds."""

import functools

import numpy as np

from tfsd.training.figures import FIGURES, INK
from tfsd.training.scenes import COLOURS, Scene, Thing

_WARM_DARK = {"yellow": (232, 174, 30), "orange": (222, 104, 12), "pink": (220, 98, 156)}  # plain darkening looks like mud
_LIGHT_FROM = (-0.45, -0.9)  # direction of the light over an object


def render(scene: Scene, size: int = 128) -> np.ndarray:
    """Paints a scene.

    Returns: uint8 [size, size, 3]; the same scene always gives the same bytes.
    """
    canvas = background(scene.background, size).copy()
    for thing in scene.things:
        paint(canvas, thing)
    return (canvas + 0.5).astype(np.uint8)


def near_objects(scene: Scene, size: int) -> np.ndarray:
    """Tells which cells of a grid of `size` x `size` lie on an object or just beside it: bool [size, size]."""
    centres = (np.arange(size) + 0.5) / size
    near = np.zeros((size, size), bool)
    for thing in scene.things:
        near |= np.hypot(centres - thing.x, centres[:, None] - thing.y) < 1.15 * thing.size + 0.02
    return near


def paint(canvas: np.ndarray, thing: Thing) -> None:
    """Paints one object into `canvas`, float32 [H, W, 3] in [0, 255]."""
    size = canvas.shape[0]
    radius, line = thing.size * size, max(1.0, 0.013 * size)
    reach = radius * 1.06 + line + 1
    left, right = max(int(thing.x * size - reach), 0), min(int(thing.x * size + reach) + 2, size)
    top, bottom = max(int(thing.y * size - reach), 0), min(int(thing.y * size + reach) + 2, size)
    x = ((np.arange(left, right, dtype=np.float32) + 0.5) - thing.x * size) / radius
    y = ((np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5) - thing.y * size) / radius
    x, y = np.broadcast_arrays(x, y)
    shade = np.clip((x * _LIGHT_FROM[0] + y * _LIGHT_FROM[1]) * 0.14, -0.16, 0.16).astype(np.float32)[..., None]
    patch = canvas[top:bottom, left:right]
    colours = tones(thing.colour)
    for distance, tone, outlined in FIGURES[thing.shape](x, y):
        distance = (distance * radius).astype(np.float32)[..., None]
        if outlined:
            patch += np.clip(0.5 + line - distance, 0, 1) * (colours[INK] - patch)
        colour = colours[tone]
        patch += np.clip(0.5 - distance, 0, 1) * (colour + shade * _spread(tone, colour) - patch)


def _spread(tone: int, colour: np.ndarray) -> np.ndarray | float:
    """How far shading moves a colour: never out of [0, 255]."""
    return 0.0 if tone == INK else np.minimum(255 - colour, colour) * 0.5 + 40 * (colour < 250) * (colour > 30)


@functools.cache
def tones(colour: str) -> np.ndarray:
    """The five tones of a colour, in the order of `figures`: float32 [5, 3] in [0, 255]."""
    main = np.asarray(COLOURS[colour], np.float32)
    dark, light, ink = main * 0.72, main * 0.5 + 127, main * 0.34
    white = np.full(3, 248, np.float32)
    if colour == "black":
        dark, light, ink = main * 0.62, main * 0.6 + 62, main * 0.2
    elif colour == "white":  # white details would vanish on it
        dark, light, ink, white = np.array([(196, 202, 216), (224, 228, 238), (92, 96, 112), (208, 214, 228)], np.float32)
    elif colour in _WARM_DARK:
        dark = np.array(_WARM_DARK[colour], np.float32)
    return np.asarray([main, dark, light, white, ink], np.float32)


@functools.cache
def background(name: str, size: int = 128) -> np.ndarray:
    """A background without objects: float32 [size, size, 3] in [0, 255]. Callers must not write into it."""
    x = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(x, x)
    canvas = _BACKDROPS[name](_Brush(x, y, size)).astype(np.float32)
    return np.clip(canvas, 0, 255)


class _Brush:
    """Coordinates in [0, 1] and the few strokes from which the backgrounds are made."""

    def __init__(self, x, y, size):
        self.x, self.y, self.size = x, y, size

    def gradient(self, *stops):
        """Colours from top to bottom, evenly spaced."""
        at = np.linspace(0, 1, len(stops))
        return np.stack([np.interp(self.y, at, [stop[i] for stop in stops]) for i in range(3)], axis=-1)

    def fill(self, canvas, distance, colour, opacity=1.0):
        """Lays a colour over where `distance` (a fraction of the side) is negative."""
        alpha = np.clip(0.5 - distance * self.size, 0, 1)[..., None] * opacity
        return canvas + alpha * (np.asarray(colour, np.float32) - canvas)

    def disc(self, x, y, radius, stretch=1.0):
        """Distance to a disc, or to an ellipse `stretch` times as wide as high."""
        return np.hypot((self.x - x) / stretch, self.y - y) - radius

    def hills(self, level, height, waves, phase=0.0):
        """Distance to the land below a wavy line."""
        return level + height * np.sin(2 * np.pi * (waves * self.x + phase)) - self.y

    def peak(self, x, y, slope):
        """Distance to the land below a mountain top."""
        return (y - self.y + np.abs(self.x - x) * slope) / np.hypot(1, slope)

    def cloud(self, canvas, x, y, scale, colour=(255, 255, 255), opacity=0.9):
        """Three puffs on a flat base."""
        puffs = [
            self.disc(x + dx * scale, y - dy * scale, r * scale) for dx, dy, r in ((-0.6, 0, 0.4), (0, 0.2, 0.6), (0.65, 0, 0.42))
        ]
        shape = np.maximum(np.minimum.reduce(puffs), self.y - y - 0.12 * scale)
        return self.fill(canvas, shape, colour, opacity)


def _sea(brush):
    canvas = brush.gradient((150, 214, 246), (206, 238, 250), (206, 238, 250))
    canvas = brush.fill(canvas, brush.disc(0.84, 0.13, 0.075), (255, 240, 170))
    canvas = brush.cloud(canvas, 0.24, 0.13, 0.1)
    for level, colour, phase in (
        (0.34, (66, 166, 208), 0),
        (0.5, (50, 146, 196), 0.4),
        (0.68, (38, 126, 182), 0.15),
        (0.85, (30, 108, 166), 0.6),
    ):
        canvas = brush.fill(canvas, brush.hills(level, 0.014, 4, phase), np.asarray(colour) + 28)
        canvas = brush.fill(canvas, brush.hills(level + 0.016, 0.014, 4, phase), colour)
    return canvas


def _grass(brush):
    canvas = brush.gradient((156, 212, 250), (222, 242, 252), (222, 242, 252))
    canvas = brush.cloud(canvas, 0.72, 0.14, 0.12)
    canvas = brush.fill(canvas, brush.hills(0.4, 0.035, 1, 0.1), (176, 222, 130))
    canvas = brush.fill(canvas, brush.hills(0.52, 0.03, 1, 0.6), (154, 208, 104))
    canvas = brush.fill(canvas, brush.hills(0.72, 0.025, 1.3, 0.2), (134, 194, 88))
    for x, y in ((0.08, 0.9), (0.3, 0.95), (0.9, 0.86), (0.66, 0.93), (0.05, 0.63), (0.95, 0.66)):
        canvas = brush.fill(canvas, brush.disc(x, y, 0.013), (255, 250, 220))
    return canvas


def _night(brush):
    canvas = brush.gradient((40, 48, 108), (62, 72, 146), (92, 98, 176))
    for i in range(22):
        x, y = (0.07 + 0.7549 * i) % 1.0, 0.03 + 0.75 * ((0.5698 * i + 0.2) % 1.0)
        canvas = brush.fill(canvas, brush.disc(x, y, 0.006 + 0.005 * (i % 3 == 0)), (244, 240, 200), 0.9)
    return brush.fill(canvas, brush.hills(0.88, 0.03, 1, 0.3), (36, 52, 92))


def _snow(brush):
    canvas = brush.gradient((176, 198, 222), (204, 220, 236), (222, 232, 242))
    canvas = brush.fill(canvas, brush.hills(0.5, 0.05, 1, 0.0), (222, 232, 244))
    canvas = brush.fill(canvas, brush.hills(0.66, 0.04, 1, 0.5), (234, 241, 250))
    for i in range(26):
        x, y = (0.05 + 0.7549 * i) % 1.0, 0.02 + 0.6 * ((0.5698 * i + 0.5) % 1.0)
        canvas = brush.fill(canvas, brush.disc(x, y, 0.011), (250, 252, 255), 0.85)
    return canvas


def _desert(brush):
    canvas = brush.gradient((250, 222, 160), (253, 238, 196), (253, 238, 196))
    canvas = brush.fill(canvas, brush.disc(0.18, 0.16, 0.085), (255, 250, 226))
    canvas = brush.fill(canvas, brush.hills(0.46, 0.05, 1, 0.55), (236, 196, 130))
    canvas = brush.fill(canvas, brush.hills(0.62, 0.05, 0.8, 0.1), (226, 180, 110))
    return brush.fill(canvas, brush.hills(0.84, 0.03, 0.7, 0.6), (214, 164, 94))


def _forest(brush):
    canvas = brush.gradient((190, 220, 200), (160, 200, 172), (160, 200, 172))
    for start, step, level, slope, colour in ((0.0, 0.125, 0.1, 3.0, (128, 176, 144)), (0.06, 0.2, 0.2, 3.0, (96, 150, 116))):
        for i in range(10):
            tree = np.maximum(brush.peak(start + step * i, level + 0.04 * (i % 2), slope), brush.y - 0.7)
            canvas = brush.fill(canvas, tree, colour)
    canvas = brush.fill(canvas, brush.hills(0.62, 0.015, 1.5, 0.2), (92, 128, 78))
    return brush.fill(canvas, brush.hills(0.82, 0.02, 1.2, 0.7), (78, 112, 66))


def _mountains(brush):
    canvas = brush.gradient((142, 190, 236), (214, 232, 248), (214, 232, 248))
    for x, y, slope, colour in ((0.75, 0.2, 1.1, (146, 156, 190)), (0.25, 0.1, 1.2, (122, 134, 172))):
        peak = brush.peak(x, y, slope)
        canvas = brush.fill(canvas, peak, colour)
        teeth = 0.012 * np.abs(((brush.x * 14) % 1) * 2 - 1)
        canvas = brush.fill(canvas, np.maximum(peak, brush.y - y - 0.12 + teeth * 2), (246, 249, 255))
    canvas = brush.fill(canvas, brush.hills(0.68, 0.03, 1, 0.35), (128, 158, 136))
    return brush.fill(canvas, brush.hills(0.82, 0.025, 1, 0.8), (108, 140, 114))


def _sky(brush):
    canvas = brush.gradient((96, 176, 244), (142, 204, 250), (190, 228, 253))
    for x, y, scale in ((0.2, 0.2, 0.16), (0.8, 0.34, 0.15), (0.3, 0.84, 0.19), (0.86, 0.82, 0.13)):
        canvas = brush.cloud(canvas, x, y, scale)
    return canvas


def _sunset(brush):
    canvas = brush.gradient((112, 78, 150), (226, 112, 130), (255, 176, 104), (255, 214, 130))
    canvas = brush.fill(canvas, brush.disc(0.5, 0.74, 0.2), (255, 240, 176))
    canvas = brush.fill(canvas, brush.hills(0.76, 0.0, 1), (170, 92, 132))
    for y, width in ((0.81, 0.2), (0.87, 0.14), (0.93, 0.08)):
        canvas = brush.fill(canvas, brush.disc(0.5, y, 0.011, width * 60), (255, 214, 150), 0.85)
    return canvas


def _beach(brush):
    canvas = brush.gradient((132, 208, 250), (196, 234, 252), (196, 234, 252))
    canvas = brush.fill(canvas, brush.disc(0.16, 0.14, 0.08), (255, 236, 150))
    canvas = brush.fill(canvas, 0.36 - brush.y, (86, 188, 212))
    canvas = brush.fill(canvas, brush.hills(0.52, 0.02, 1.5, 0.1), (232, 248, 250))
    return brush.fill(canvas, brush.hills(0.55, 0.02, 1.5, 0.1), (246, 224, 172))


_BACKDROPS = {
    "sea": _sea,
    "grass": _grass,
    "night": _night,
    "snow": _snow,
    "desert": _desert,
    "forest": _forest,
    "mountains": _mountains,
    "sky": _sky,
    "sunset": _sunset,
    "beach": _beach,
    "white": lambda brush: brush.gradient((252, 252, 252), (244, 244, 246)),
    "grey": lambda brush: brush.gradient((176, 178, 184), (156, 158, 164)),
    "blue": lambda brush: brush.gradient((158, 202, 244), (132, 182, 234)),
    "yellow": lambda brush: brush.gradient((255, 238, 160), (253, 226, 128)),
}
