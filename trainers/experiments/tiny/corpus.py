"""What the built-in small CLIP learns from: drawn shapes and, where given, real images."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from ...datasets import COOP, drawing
from ...datasets.splits import Split, read_split

ANY = -1  # in a caption: the attribute is not named
REAL = {"eurosat": "eurosat", "caltech": "caltech101"}  # kind -> name of the data set
PHOTO = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.")
TEMPLATES = {
    "shapes": ("a drawing of a {}.", *PHOTO, "this is a {}.", "a {}.", "{}"),
    "eurosat": (
        *("a centered satellite photo of {}.", "a satellite photo of {}.", "a photo of {}."),
        *("an aerial view of {}.", "{}"),
    ),
    "caltech": (*PHOTO, "a {}.", "{}"),
}
# Which attributes a caption names, and how often: (colour, shape, fill, background).
MENTIONS = {
    (1, 1, 0, 0): 0.45,
    (1, 1, 1, 0): 0.12,
    (1, 1, 0, 1): 0.1,
    (1, 1, 1, 1): 0.08,
    (0, 1, 0, 0): 0.15,
    (1, 0, 0, 0): 0.03,
    (0, 1, 1, 0): 0.07,
}
# Words of the templates that users' prompts bring along; kept in the token table.
EXTRA_WORDS = "a type of pet flower texture food person doing aircraft the shape background on"
_VOCABULARY = (
    *(tuple(drawing.COLOURS), drawing.SHAPES),
    *(drawing.FILLS, tuple(drawing.BACKGROUNDS)),
)


class RealSet(NamedTuple):
    """Training images of one real data set, decoded once."""

    kind: str
    images: np.ndarray  # (N, S, S, 3) uint8
    labels: np.ndarray  # (N,)
    classnames: list[str]


def real_split(root: Path, kind: str) -> tuple[Path, Split] | None:
    """Return the image folder and CoOp's split of a real data set; None where it is missing."""
    cls = COOP[REAL[kind]]
    file = root / cls.dataset_dir / cls.split_file
    return (file.parent / cls.image_folder, read_split(file)) if file.is_file() else None


def load_real(root: Path, kind: str, size: int) -> RealSet | None:
    """Decode the training images of CoOp's split; None where the data set is missing."""
    if (found := real_split(root, kind)) is None:
        return None
    folder, items = found[0], found[1].train
    images = np.empty((len(items), size, size, 3), np.uint8)
    for i, item in enumerate(tqdm(items, desc=f"decode {kind}", leave=False)):
        image = Image.open(folder / item.path).convert("RGB")
        scale = size / min(image.size)
        wide = (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
        image = image.resize(wide, Image.Resampling.BICUBIC)
        left, top = (wide[0] - size) // 2, (wide[1] - size) // 2
        images[i] = np.asarray(image.crop((left, top, left + size, top + size)))
    names = {item.label: item.classname.replace("_", " ") for item in items}
    labels = np.array([item.label for item in items])
    return RealSet(kind, images, labels, [names[k] for k in sorted(names)])


def augment(images: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """Random crop, flip and (satellite) quarter turns: (B, 3, S, S) -> (B, 3, 64, 64) in [0, 1]."""
    n = len(images)

    def uniform(low, high):
        return torch.rand(n, generator=generator) * (high - low) + low

    zoom = uniform(0.65, 1.0) if kind == "caltech" else uniform(0.75, 1.0)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    quarter = (uniform(0, 4).floor() if kind == "eurosat" else torch.zeros(n)) * torch.pi / 2
    cos, sin = quarter.cos(), quarter.sin()
    shift = torch.stack([uniform(-1, 1), uniform(-1, 1)], 1) * (1 - zoom)[:, None]  # (B, 2)
    rows = torch.stack(
        [zoom * flip * cos, -zoom * sin, shift[:, 0], zoom * flip * sin, zoom * cos, shift[:, 1]], 1
    )
    grid = F.affine_grid(rows.view(n, 2, 3), (n, 3, drawing.SIZE, drawing.SIZE), False)
    out = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    gain = uniform(0.85, 1.15).view(n, 1, 1, 1)
    return (out * gain).clamp(0, 1)


class CaptionedImages:
    """Batches of images and captions; a batch depends only on (seed, step).

    Over the first ``easy_steps`` steps drawings go from easy to ordinary.
    """

    def __init__(self, real: list[RealSet], counts: dict[str, int], seed: int, easy_steps: int = 0):
        self.real, self.counts, self.seed, self.easy_steps = real, counts, seed, easy_steps
        sizes = [len(data.classnames) for data in real]
        self.offsets = {data.kind: sum(sizes[:i]) for i, data in enumerate(real)}

    def shapes(self, step: int) -> tuple[torch.Tensor, np.ndarray]:
        """Return drawings (B, 3, 64, 64) and their attributes (B, 4)."""
        count = self.counts["shapes"]
        images = np.empty((count, drawing.SIZE, drawing.SIZE, 3), np.uint8)
        attributes = np.empty((count, 4), int)
        ease = max(0.0, 1 - step / self.easy_steps) if self.easy_steps else 0.0
        for i in range(count):
            drawn, images[i] = drawing.sample("pretrain", step * count + i, ease=ease)
            words = (drawn.colour, drawn.shape, drawn.fill, drawn.background)
            attributes[i] = [v.index(w) for v, w in zip(_VOCABULARY, words, strict=True)]
        return _pixels(images), attributes

    def photos(self, data: RealSet, step: int) -> tuple[torch.Tensor, np.ndarray]:
        """Return augmented photos (B, 3, 64, 64) and their labels (B,)."""
        rng = np.random.default_rng([self.seed, 1 + self.offsets[data.kind], step])
        rows = rng.integers(len(data.images), size=self.counts[data.kind])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return augment(_pixels(data.images[rows]), data.kind, generator), data.labels[rows]

    def batch(self, step: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """Return images (B, 3, 64, 64), distinct captions (U) and which fit (B, U) bool."""
        rng = np.random.default_rng([self.seed, 0, step])
        images, drawn = self.shapes(step)
        pixels, facts = [images], [np.concatenate([drawn, np.full((len(drawn), 1), -2)], 1)]
        captions: dict[str, np.ndarray] = {}
        for row in drawn:
            named = np.array(
                list(MENTIONS)[rng.choice(len(MENTIONS), p=[*MENTIONS.values()])], bool
            )
            caption = _describe(row, named, rng.choice(TEMPLATES["shapes"]))
            captions[caption] = np.append(np.where(named, row, ANY), ANY)
        for data in self.real:
            images, labels = self.photos(data, step)
            pixels.append(images)
            fact = np.full((len(labels), 5), -2)
            fact[:, 4] = labels + self.offsets[data.kind]
            facts.append(fact)
            for label in labels:
                caption = str(rng.choice(TEMPLATES[data.kind])).format(data.classnames[label])
                captions[caption] = np.array([ANY] * 4 + [label + self.offsets[data.kind]])
        facts, said = np.concatenate(facts), np.array(list(captions.values()))
        fits = ((said[None] == ANY) | (said[None] == facts[:, None])).all(-1)  # (B, U)
        return torch.cat(pixels), list(captions), torch.from_numpy(fits)

    def classes(self) -> dict[str, list[str]]:
        """Return one prompt per class and kind; of drawings, every colour and shape."""
        names = {"shapes": [f"{c} {s}" for c in drawing.COLOURS for s in drawing.SHAPES]}
        names |= {data.kind: data.classnames for data in self.real}
        return {k: [TEMPLATES[k][0].format(name) for name in names[k]] for k in names}

    def words(self) -> list[str]:
        """Return texts that hold every word any caption can contain."""
        texts = [t.format("") for group in TEMPLATES.values() for t in group]
        texts += [word for group in _VOCABULARY for word in group] + EXTRA_WORDS.split()
        return texts + [name for data in self.real for name in data.classnames]


def pair_labels(attributes: np.ndarray) -> torch.Tensor:
    """Map attributes (B, 4) to indices into ``classes()["shapes"]``."""
    return torch.from_numpy(attributes[:, 0] * len(drawing.SHAPES) + attributes[:, 1])


def _pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)


def _describe(row: np.ndarray, named: np.ndarray, template: str) -> str:
    colour, shape, fill, background = (
        vocabulary[i] if use else ""
        for vocabulary, i, use in zip(_VOCABULARY, row, named, strict=True)
    )
    text = str(template).format(" ".join(filter(None, [fill, colour, shape or "shape"])))
    if background:
        text = f"{text.rstrip('.')} on a {background} background" + ("." if "." in text else "")
    return text
