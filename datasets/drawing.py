"""Drawn shapes: colour x shape x fill x background, deterministic and vectorised.

The same drawings feed the ``shapes`` data set and the pre-training of the built-in small
CLIP. Every image depends only on (stream, index); the streams of pre-training, of the
three splits and of the held-out figures never overlap.
"""

import colorsys
from dataclasses import dataclass

import numpy as np

SIZE = 64
COLOURS = {  # hue in turns
    "red": 0.0,
    "orange": 0.085,
    "yellow": 0.16,
    "green": 0.34,
    "cyan": 0.5,
    "blue": 0.64,
    "purple": 0.77,
    "pink": 0.9,
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "crescent", "arrow")
FILLS = ("solid", "outlined", "striped")
BACKGROUNDS = {"black": 0.08, "grey": 0.45, "white": 0.9}  # mean brightness
STREAMS = {"pretrain": 0, "train": 1, "val": 2, "test": 3, "check": 4}
CLASS_COLOURS = ("red", "yellow", "green", "blue")  # the colours of the `shapes` data set

# One colour per shape is never shown or captioned in pre-training.
HELD_OUT = frozenset(zip(COLOURS, SHAPES, strict=True))


@dataclass(frozen=True)
class Drawing:
    """What an image shows; the words are keys of the tables above."""

    colour: str
    shape: str
    fill: str
    background: str


def shape_classes() -> list[str]:
    """Return the 32 class names of the `shapes` data set, such as ``red circle``."""
    return [f"{colour} {shape}" for shape in SHAPES for colour in CLASS_COLOURS]


def _rotate(u, v, turns):
    c, s = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    return c * u - s * v, s * u + c * v


def _box(u, v, half_u, half_v):
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def _triangle(u, v, inradius=0.52):
    angles = 2 * np.pi * (np.arange(3) / 3 + 0.25)
    return np.max([np.cos(a) * u + np.sin(a) * v for a in angles], axis=0) - inradius


def _star(u, v):
    sector = 2 * np.pi / 5
    angle = np.abs((np.arctan2(v, u) + sector / 2) % sector - sector / 2)  # 0 at a tip
    radius = np.hypot(u, v)
    tip, notch = np.array([1.05, 0.0]), 0.45 * np.array([np.cos(sector / 2), np.sin(sector / 2)])
    normal = np.array([-(notch - tip)[1], (notch - tip)[0]])
    normal *= -np.sign(normal @ tip) / np.linalg.norm(normal)  # towards the centre
    return -((radius * np.cos(angle) - tip[0]) * normal[0] + radius * np.sin(angle) * normal[1])


def _heart(u, v):
    half, v = 0.56, v + 0.12
    a, b = _rotate(u, v, 0.125)
    square = _box(a, b, half, half)
    left, right = np.hypot(a + half, b) - half, np.hypot(a, b + half) - half
    return np.minimum(square, np.minimum(left, right))


def _arrow(u, v):
    shaft = _box(u + 0.45, v, 0.5, 0.2)
    head = np.maximum(-u, (u + np.abs(v) * 1.25 - 0.95) / 1.6)
    return np.minimum(shaft, head)


_DISTANCE = {  # signed distance to the outline, negative inside; units of the radius
    "circle": lambda u, v: np.hypot(u, v) - 0.88,
    "square": lambda u, v: _box(u, v, 0.76, 0.76),
    "triangle": _triangle,
    "star": _star,
    "cross": lambda u, v: np.minimum(_box(u, v, 0.95, 0.3), _box(u, v, 0.3, 0.95)),
    "heart": _heart,
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 0.95, 0.72 - np.hypot(u - 0.42, v)),
    "arrow": _arrow,
}


def _paint(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    radius = rng.uniform(15, 26)
    centre = rng.uniform(radius + 1, SIZE - radius - 1, 2)
    turn = rng.uniform(-0.06, 0.06)
    yy, xx = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    u, v = _rotate((xx - centre[0]) / radius, (yy - centre[1]) / radius, turn)
    distance = _DISTANCE[drawing.shape](u, v)
    if drawing.fill == "outlined":
        distance = np.abs(distance + 0.1) - 0.1
    elif drawing.fill == "striped":
        stripes = (np.abs((u * 2.2 + 0.25) % 1 - 0.5) - 0.27) / 2.2
        distance = np.maximum(distance, np.minimum(stripes, -(distance + 0.1)))
    cover = np.clip(0.5 - distance * radius, 0, 1)[..., None]  # (H, W, 1), antialiased
    hue = (COLOURS[drawing.colour] + rng.uniform(-0.018, 0.018)) % 1
    ink = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.65, 1), rng.uniform(0.65, 1)))
    level = BACKGROUNDS[drawing.background]
    corners = level + rng.uniform(-0.08, 0.08, (2, 3))  # two tints, blended along a direction
    tilt = rng.uniform(0, 2 * np.pi)
    blend = ((np.cos(tilt) * xx + np.sin(tilt) * yy) / SIZE)[..., None] * 0.5 + 0.5  # (H, W, 1)
    paper = corners[0] * blend + corners[1] * (1 - blend)
    image = cover * ink + (1 - cover) * paper + rng.normal(0, rng.uniform(0, 0.03), xx.shape + (3,))
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def draw(drawing: Drawing, stream: str, index: int) -> np.ndarray:
    """Return image ``index`` of one of :data:`STREAMS`, (64, 64, 3) uint8, the same everywhere."""
    return _paint(drawing, np.random.default_rng([STREAMS[stream], index]))


def sample(stream: str, index: int, classname: str) -> np.ndarray:
    """Return image ``index`` of a colour and a shape, (64, 64, 3) uint8, random in all else."""
    rng = np.random.default_rng([STREAMS[stream], index])
    # drawn in pre-training, too; the same order of draws reproduces the same images
    while (rng.choice(list(COLOURS)), rng.choice(SHAPES)) in HELD_OUT:
        pass
    colour, shape = classname.split(" ")
    fill, background = str(rng.choice(FILLS)), str(rng.choice(list(BACKGROUNDS)))
    return _paint(Drawing(colour, shape, fill, background), rng)
