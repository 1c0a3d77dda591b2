"""The silhouettes of the scenes' objects as signed distances, layer by layer.

Distances are in units of the object's radius, negative inside; x points right and y down, the object fills [-1, 1].
They are exact or lower bounds, which is enough for anti-aliased edges and outlines.
"""

from collections.abc import Callable

import numpy as np

MAIN, DARK, LIGHT, WHITE, INK = range(5)  # tones of a layer: shades of the object's own colour, and white


def _circle(x, y, cx, cy, radius):
    return np.hypot(x - cx, y - cy) - radius


def _ellipse(x, y, cx, cy, rx, ry):
    u, v = (x - cx) / rx, (y - cy) / ry
    length = np.hypot(u, v)
    return length * (length - 1) / (np.hypot(u / rx, v / ry) + 1e-6)


def _box(x, y, cx, cy, half_width, half_height, rounding=0.06):
    u, v = np.abs(x - cx) - half_width + rounding, np.abs(y - cy) - half_height + rounding
    return np.hypot(np.maximum(u, 0), np.maximum(v, 0)) + np.minimum(np.maximum(u, v), 0) - rounding


def _convex(x, y, *corners):
    """A convex polygon; corners run clockwise as seen with y down."""
    distance = None
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
        length = np.hypot(bx - ax, by - ay)
        side = (by - ay) / length * (x - ax) - (bx - ax) / length * (y - ay)
        distance = side if distance is None else np.maximum(distance, side)
    return distance


def _union(*parts):
    distance = parts[0]
    for part in parts[1:]:
        distance = np.minimum(distance, part)
    return distance


def _ball(x, y):
    body = _circle(x, y, 0, 0, 0.92)
    stripe = np.maximum(np.abs(_circle(x, y, 0.95, -0.75, 1.2)) - 0.17, body)
    return [(body, MAIN, True), (stripe, WHITE, False), (_ellipse(x, y, -0.42, -0.5, 0.2, 0.13), LIGHT, False)]


def _boat(x, y):
    hull = _convex(x, y, (-1.0, 0.32), (1.0, 0.32), (0.62, 0.9), (-0.62, 0.9))
    sail = _convex(x, y, (0.08, -1.0), (0.92, 0.14), (0.08, 0.14))
    jib = _convex(x, y, (-0.1, -0.72), (-0.1, 0.14), (-0.72, 0.14))
    mast = _box(x, y, 0.0, -0.3, 0.05, 0.65)
    band = np.maximum(np.abs(y - 0.5) - 0.05, hull)
    return [(mast, DARK, True), (sail, MAIN, True), (jib, WHITE, True), (hull, MAIN, True), (band, WHITE, False)]


def _car(x, y):
    body = _box(x, y, 0, 0.2, 1.0, 0.32, 0.2)
    cabin = _convex(x, y, (-0.42, -0.55), (0.3, -0.55), (0.62, 0.05), (-0.66, 0.05)) - 0.04
    panes = _union(
        _convex(x, y, (-0.36, -0.4), (-0.1, -0.4), (-0.1, -0.06), (-0.5, -0.06)),
        _convex(x, y, (0.06, -0.4), (0.24, -0.4), (0.42, -0.06), (0.06, -0.06)),
    )
    wheels = _circle(np.abs(x), y, 0.52, 0.48, 0.27)
    return [
        (_union(body, cabin), MAIN, True),
        (panes, WHITE, False),
        (wheels, INK, True),
        (wheels + 0.15, WHITE, False),
        (_circle(x, y, 0.86, 0.1, 0.09), WHITE, False),
    ]


def _cat(x, y):
    mirrored = np.abs(x + 0.14)
    tail = np.abs(_ellipse(x, y, 0.5, 0.36, 0.34, 0.46)) - 0.1
    tail = np.maximum(tail, np.minimum(0.42 - x, 0.3 - y))
    body = _union(_ellipse(x, y, -0.14, 0.3, 0.42, 0.6), _ellipse(x, y, -0.14, 0.68, 0.56, 0.3))
    ears = _convex(mirrored, y, (0.16, -0.7), (0.58, -1.04), (0.64, -0.4))
    head = _union(_ellipse(x, y, -0.14, -0.36, 0.68, 0.5), ears)
    eyes = _ellipse(mirrored, y, 0.28, -0.42, 0.08, 0.12)
    return [
        (tail, MAIN, True),
        (body, MAIN, True),
        (_ellipse(x, y, -0.14, 0.56, 0.25, 0.32), LIGHT, False),
        (head, MAIN, True),
        (_ellipse(x, y, -0.14, -0.15, 0.25, 0.15), WHITE, False),
        (eyes - 0.04, WHITE, False),
        (eyes, INK, False),
        (_circle(x, y, -0.14, -0.21, 0.07), INK, False),
    ]


def _cup(x, y):
    handle = np.abs(_ellipse(x, y, 0.48, 0.1, 0.4, 0.38)) - 0.1
    body = _convex(x, y, (-0.86, -0.62), (0.56, -0.62), (0.42, 0.8), (-0.72, 0.8)) - 0.08
    band = np.maximum(np.abs(y - 0.3) - 0.13, body)
    rim = _ellipse(x, y, -0.15, -0.62, 0.76, 0.22)
    return [(handle, MAIN, True), (body, MAIN, True), (band, WHITE, False), (rim, LIGHT, True), (rim + 0.09, DARK, False)]


def _fish(x, y):
    tail = _union(_convex(x, y, (-0.4, 0.0), (-1.0, -0.1), (-1.0, -0.62)), _convex(x, y, (-0.4, 0.0), (-1.0, 0.62), (-1.0, 0.1)))
    tail = _union(tail, _convex(x, y, (-0.3, 0.0), (-0.8, 0.3), (-0.8, -0.3)))
    fin = _convex(x, y, (-0.2, -0.85), (0.42, -0.4), (-0.2, -0.35)) - 0.03
    body = _ellipse(x, y, 0.2, 0.0, 0.8, 0.56)
    stripe = np.maximum(np.abs(_circle(x, y, -0.75, 0.0, 0.85)) - 0.09, body)
    gill = np.maximum(np.abs(_circle(x, y, 1.0, 0.0, 0.62)) - 0.05, body + 0.14)
    eye = _circle(x, y, 0.66, -0.14, 0.16)
    return [
        (tail, DARK, True),
        (fin, DARK, True),
        (body, MAIN, True),
        (stripe, WHITE, False),
        (gill, DARK, False),
        (eye, WHITE, False),
        (eye + 0.07, INK, False),
    ]


def _flower(x, y):
    stem = _box(x, y, 0, 0.5, 0.07, 0.48)
    leaves = np.maximum(_circle(np.abs(x), y, 0.18, 0.98, 0.5), _circle(np.abs(x), y, 0.56, 0.46, 0.46))
    angles = -np.pi / 2 + 2 * np.pi / 5 * np.arange(5)
    petals = _union(*(_circle(x, y, 0.45 * np.cos(a), 0.45 * np.sin(a) - 0.24, 0.34) for a in angles))
    heart = _circle(x, y, 0, -0.24, 0.24)
    return [(stem, DARK, True), (leaves, DARK, True), (petals, MAIN, True), (heart, WHITE, True)]


def _heart(x, y):
    u = np.abs(x)
    tip = np.maximum(0.757 * u + 0.653 * (y - 0.9), 0.653 * (u - 0.44) - 0.757 * (y + 0.36))
    body = _union(_circle(u, y, 0.44, -0.36, 0.5), np.maximum(tip, -0.45 - y))
    return [(body, MAIN, True), (_ellipse(x, y, -0.5, -0.45, 0.19, 0.15), LIGHT, False)]


def _house(x, y):
    chimney = _box(x, y, 0.5, -0.55, 0.13, 0.35)
    walls = _box(x, y, 0, 0.38, 0.72, 0.55)
    roof = _convex(x, y, (0.0, -0.95), (0.98, -0.04), (-0.98, -0.04)) - 0.03
    window = _box(x, y, 0.34, 0.33, 0.18, 0.18, 0.03)
    cross = np.maximum(np.minimum(np.abs(x - 0.34), np.abs(y - 0.33)) - 0.03, window)
    door = _box(x, y, -0.26, 0.56, 0.2, 0.36)
    return [
        (chimney, DARK, True),
        (walls, MAIN, True),
        (roof, DARK, True),
        (door, WHITE, False),
        (window, WHITE, False),
        (cross, DARK, False),
    ]


def _moon(x, y):
    body = np.maximum(_circle(x, y, 0.08, 0, 0.94), -_circle(x, y, 0.58, -0.14, 0.74))
    craters = _union(_circle(x, y, -0.5, 0.05, 0.13), _circle(x, y, -0.18, 0.6, 0.1), _circle(x, y, -0.34, -0.48, 0.08))
    return [(body, MAIN, True), (craters, DARK, False)]


def _mushroom(x, y):
    stem = _union(_box(x, y, 0, 0.45, 0.27, 0.48, 0.12), _ellipse(x, y, 0, 0.74, 0.38, 0.2))
    cap = np.maximum(_ellipse(x, y, 0, 0.1, 1.0, 1.02), y - 0.14) - 0.03
    dots = _union(_circle(x, y, -0.5, -0.2, 0.17), _circle(x, y, 0.06, -0.5, 0.2), _circle(x, y, 0.55, -0.14, 0.15))
    return [(stem, WHITE, True), (cap, MAIN, True), (dots, WHITE, False)]


def _rocket(x, y):
    u = np.abs(x)
    flame = _convex(x, y, (-0.2, 0.55), (0.2, 0.55), (0.0, 1.02)) - 0.02
    fins = _convex(u, y, (0.2, 0.08), (0.76, 0.62), (0.72, 0.84), (0.2, 0.62))
    body = np.maximum(np.hypot(u + 0.68, y - 0.05) - 1.15, y - 0.66)
    nose = np.maximum(body, y + 0.46)
    window = _circle(x, y, 0, -0.12, 0.2)
    return [
        (flame, WHITE, True),
        (fins, DARK, True),
        (body, MAIN, True),
        (nose, DARK, False),
        (window, WHITE, True),
        (window + 0.1, LIGHT, False),
    ]


def _star(x, y):
    sector = 2 * np.pi / 5
    length, angle = np.hypot(x, y - 0.05), np.arctan2(x, 0.05 - y)
    folded = np.abs((angle + sector / 2) % sector - sector / 2)  # the half point from tip to notch
    u, v = length * np.sin(folded), length * np.cos(folded)
    tip, notch = (0.0, 0.97), (0.45 * np.sin(sector / 2), 0.45 * np.cos(sector / 2))
    edge = np.hypot(notch[0], tip[1] - notch[1])
    body = ((tip[1] - notch[1]) * u - notch[0] * (tip[1] - v)) / edge
    return [(body - 0.03, MAIN, True), (_ellipse(x, y, -0.2, -0.18, 0.12, 0.09), LIGHT, False)]


def _tree(x, y):
    trunk = _box(x, y, 0, 0.74, 0.16, 0.26)
    tiers = [
        _convex(x, y, (0.0, -0.3), (0.82, 0.58), (-0.82, 0.58)),
        _convex(x, y, (0.0, -0.68), (0.66, 0.12), (-0.66, 0.12)),
        _convex(x, y, (0.0, -1.02), (0.48, -0.34), (-0.48, -0.34)),
    ]
    return [(trunk, DARK, True), *((tier, MAIN, True) for tier in tiers)]


FIGURES: dict[str, Callable] = {  # shape -> layers (distance, tone, outlined) from back to front
    "ball": _ball,
    "boat": _boat,
    "car": _car,
    "cat": _cat,
    "cup": _cup,
    "fish": _fish,
    "flower": _flower,
    "heart": _heart,
    "house": _house,
    "moon": _moon,
    "mushroom": _mushroom,
    "rocket": _rocket,
    "star": _star,
    "tree": _tree,
}
