"""Drawn shapes in colours: the data set that is built in, so that everything runs at once."""

import hashlib
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..utils import io
from ..utils.errors import UserError
from . import drawing
from .base import CoOpDataset, read_split, register
from .files import whole_folder
from .sampling import Item, Split

IMAGES_PER_CLASS = {"train": 32, "val": 8, "test": 40}


def recipe_digest() -> str:
    """Return eight hex digits that change with the drawing code and the number of images."""
    code = Path(drawing.__file__).read_bytes()
    return hashlib.sha256(code + repr(IMAGES_PER_CLASS).encode()).hexdigest()[:8]


def draw_class(folder: Path, part: str, label: int, classname: str) -> None:
    """Draw the images of one class and part into ``folder``, which appears once it is whole."""
    count = IMAGES_PER_CLASS[part]
    with whole_folder(folder) as unfinished:
        for n in range(count):
            _, pixels = drawing.sample(part, label * count + n, classname)
            Image.fromarray(pixels).save(unfinished / f"{n:03d}.png")


def draw_all(folder: Path) -> Split:
    """Draw the whole data set, going on where an earlier call was cut, then its manifest.

    Returns:
        the split, with paths such as ``train/red_circle/000.png`` relative to ``folder``.
    """
    io.writable_dir(folder)
    split = {part: [] for part in Split._fields}
    units = [(p, y, name) for p in split for y, name in enumerate(drawing.shape_classes())]
    for part, label, classname in tqdm(units, desc="Drawing shapes", unit="folder"):
        unit = f"{part}/{classname.replace(' ', '_')}"
        if not (folder / unit).is_dir():
            try:
                draw_class(folder / unit, part, label, classname)
            except OSError as error:
                raise UserError(
                    f"cannot draw the images in '{folder / unit}' ({error.strerror or error}); "
                    "free some space or set DATASET.CACHE_DIR to a folder that is writable"
                ) from error
        split[part] += [
            Item(f"{unit}/{n:03d}.png", label, classname) for n in range(IMAGES_PER_CLASS[part])
        ]
    io.write_json(folder / "manifest.json", split)
    return Split(**split)


@register
class Shapes(CoOpDataset):
    """32 classes of a colour and a shape, 64x64; 32 / 8 / 40 images per class.

    Drawn on first use (some seconds) into ``shapes/<recipe>`` of the root or, where that is
    read-only, of the cache folder. The streams of the three parts and of the small CLIP's
    pre-training never meet (`drawing.STREAMS`).
    """

    dataset_dir = "shapes"
    source = "delete '{dir}' to have the images drawn anew"

    def locate(self, cfg) -> None:
        self.dataset_dir = self.root / type(self).dataset_dir

    def advice(self) -> str:
        return self.source.format(dir=self.image_dir)

    def load_split(self) -> Split:
        recipe = recipe_digest()
        for base in (self.dataset_dir, self.cache_dir):
            self.image_dir = base / recipe
            if (self.image_dir / "manifest.json").is_file():
                return read_split(self.image_dir / "manifest.json")
        return draw_all(self.image_dir)
