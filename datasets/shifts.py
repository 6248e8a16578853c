"""Drawn test sets for prompts trained on ``shapes``: its classes in other styles, other classes.

They are to ``shapes`` what ImageNet-V2, Sketch, A and R and the ten other data sets are to
ImageNet: prompts trained there are tested here, and nothing is trained on them.
"""

import zlib

import numpy as np
from PIL import Image

from . import drawing
from .base import register
from .shapes import Drawn

SALT = 5  # keeps the shifts' random numbers apart from the streams of drawings


def shapes_picture(index: int, classname: str) -> np.ndarray:
    """Return test image ``index`` of ``shapes``, floats (64, 64, 3) in [0, 1]."""
    return drawing.sample("test", index, classname) / 255


def cut_out(drawn: drawing.Drawing, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how far a drawn shape covers each pixel (64, 64, 1), and its colour (3,), in [0, 1].

    It is drawn on black and on white; where the two agree is the shape (Smith & Blinn, 1996).
    """
    levels = drawing.BACKGROUNDS
    black, white = (
        drawing.draw(drawing.Drawing(drawn.colour, drawn.shape, drawn.fill, name), "test", index)
        / 255
        for name in ("black", "white")
    )
    paper = (white - black).mean(axis=2, keepdims=True) / (levels["white"] - levels["black"])
    cover = np.clip((0.9 - paper) / 0.8, 0, 1)  # noise that was clipped moves it by a few percent
    return cover, black[cover[..., 0] == 1].mean(axis=0)


def smooth_noise(rng: np.random.Generator, cells: int, channels: int) -> np.ndarray:
    """Return random hills (64, 64, ``channels``), ``cells`` along each side, in [-1, 1]."""
    grids = rng.uniform(-1, 1, (channels, cells, cells)).astype(np.float32)
    size = (drawing.SIZE, drawing.SIZE)
    hills = [Image.fromarray(grid).resize(size, Image.Resampling.BILINEAR) for grid in grids]
    return np.stack([np.asarray(hill) for hill in hills], axis=2)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Return an image (H, W, C) under a Gaussian of ``sigma`` pixels, edges continued."""
    reach = int(3 * sigma + 1)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        ends = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        wide = np.pad(image, ends, mode="edge")
        parts = (np.take(wide, range(k, k + image.shape[axis]), axis) for k in range(len(weights)))
        image = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    return image


def moved(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return an image (H, W, C) sampled ``shift`` (H, W, 2) pixels away, to the nearest half."""
    twice = np.kron(image, np.ones((2, 2, 1)))
    rows, columns = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    places = np.stack([rows, columns], axis=2) + shift
    places = np.clip(np.round(2 * places + 0.5), 0, 2 * image.shape[0] - 1).astype(int)
    return twice[places[..., 0], places[..., 1]]


class DrawnTest(Drawn):
    """A drawn data set for tests: all its images are test images, none for training."""

    test_only = True
    version = "b617d0b5"

    @classmethod
    def picture(cls, index: int, classname: str, rng: np.random.Generator) -> np.ndarray:
        """Return image ``index``, floats (64, 64, 3), clipped to [0, 1]; ``rng`` is its own."""
        raise NotImplementedError

    @classmethod
    def pixels(cls, part, index, classname):
        own = np.random.default_rng([SALT, zlib.crc32(cls.__name__.encode()), index])
        image = cls.picture(index, classname, own)
        return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


# --- the classes of `shapes` in other styles -----------------------------------------------------


@register
class ShapesSketch(DrawnTest):
    """Pencil lines in the class' colour on white paper, unsteady, each outline drawn twice."""

    dataset_dir = "shapes_sketch"

    @classmethod
    def picture(cls, index, classname, rng):
        colour, shape = classname.split(" ")
        cover, ink = cut_out(drawing.Drawing(colour, shape, "solid", "white"), index)
        lines = np.zeros_like(cover)
        for _ in range(2):
            inside = blurred(moved(cover, 1.6 * smooth_noise(rng, 7, 2)), 0.8)
            pressure = 0.85 + 0.15 * smooth_noise(rng, 5, 1)
            lines = np.maximum(lines, 4 * inside * (1 - inside) * pressure)  # 1 on the outline
        paper = 0.95 + rng.normal(0, 0.015, cover.shape)
        return lines * ink + (1 - lines) * paper


@register
class ShapesNoise(DrawnTest):
    """The test images of ``shapes`` under Gaussian noise."""

    dataset_dir = "shapes_noise"

    @classmethod
    def picture(cls, index, classname, rng):
        image = shapes_picture(index, classname)
        return image + rng.normal(0, rng.uniform(0.2, 0.4), image.shape)


@register
class ShapesBlur(DrawnTest):
    """The test images of ``shapes`` out of focus."""

    dataset_dir = "shapes_blur"

    @classmethod
    def picture(cls, index, classname, rng):
        return blurred(shapes_picture(index, classname), rng.uniform(2.5, 4.5))


@register
class ShapesBackground(DrawnTest):
    """Filled shapes in front of coloured clutter."""

    dataset_dir = "shapes_background"

    @classmethod
    def picture(cls, index, classname, rng):
        colour, shape = classname.split(" ")
        cover, ink = cut_out(drawing.Drawing(colour, shape, "solid", "black"), index)
        clutter = 0.5 + sum(
            size * smooth_noise(rng, cells, 3) for cells, size in ((4, 0.15), (9, 0.1), (20, 0.1))
        )
        return cover * ink + (1 - cover) * np.clip(clutter, 0, 1)


# --- other classes -------------------------------------------------------------------------------


@register
class ShapesNovel(DrawnTest):
    """32 classes in the four colours that ``shapes`` does not have, such as ``pink star``.

    Four of them were in no caption of the small CLIP's pre-training (`drawing.HELD_OUT`).
    """

    dataset_dir = "shapes_novel"

    @classmethod
    def class_names(cls):
        colours = [c for c in drawing.COLOURS if c not in drawing.CLASS_COLOURS]
        return [f"{colour} {shape}" for shape in drawing.SHAPES for colour in colours]

    @classmethod
    def picture(cls, index, classname, rng):
        return shapes_picture(10_000 + index, classname)


@register
class ShapesPatterns(DrawnTest):
    """24 classes of a filling and a shape in any colour, such as ``striped heart``."""

    dataset_dir = "shapes_patterns"

    @classmethod
    def class_names(cls):
        return [f"{fill} {shape}" for shape in drawing.SHAPES for fill in drawing.FILLS]

    @classmethod
    def picture(cls, index, classname, rng):
        fill, shape = classname.split(" ")
        colour, background = (
            str(rng.choice(list(words))) for words in (drawing.COLOURS, drawing.BACKGROUNDS)
        )
        drawn = drawing.Drawing(colour, shape, fill, background)
        return drawing.draw(drawn, "test", 20_000 + index) / 255
