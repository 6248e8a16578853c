"""Drawn shapes in colours: the built-in data set, which needs no download."""

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..utils import io
from ..utils.errors import UserError
from . import drawing
from .base import CoOpDataset, read_split, register
from .sampling import Item, Split

IMAGES_PER_CLASS = {"train": 32, "val": 8, "test": 40}


class Drawn(CoOpDataset):
    """Images that are drawn on first use (some seconds).

    They are in ``<dataset_dir>/<version>`` in the root or, if that is read-only, in the cache
    folder, and are the same on every machine.
    """

    source = "delete '{dir}' to have the images drawn again"
    version = ""  # change it whenever the drawings change

    @classmethod
    def class_names(cls) -> list[str]:
        """Return the class names in the order of their labels."""
        return drawing.shape_classes()

    @classmethod
    def pixels(cls, part: str, index: int, classname: str) -> np.ndarray:
        """Return image ``index`` of a part, counted over all classes: (64, 64, 3) uint8."""
        return drawing.sample(part, index, classname)

    @classmethod
    def draw(cls, folder: Path) -> Split:
        """Draw all images into ``folder`` and return the split.

        As in CoOp's sets for tests, their training images are the test images, so that the classes
        are known; a run that would train on them is refused.
        """
        split = Split([], [], [])
        names = tqdm(cls.class_names(), f"Drawing {cls.__name__}", unit="class")
        for label, name in enumerate(names):
            for part in ["test"] if cls.test_only else Split._fields:
                place = ("" if cls.test_only else f"{part}/") + name.replace(" ", "_")
                (folder / place).mkdir(parents=True)
                count = IMAGES_PER_CLASS[part]
                for n in range(count):
                    item = Item(f"{place}/{n:03d}.png", label, name)
                    pixels = cls.pixels(part, label * count + n, name)
                    Image.fromarray(pixels).save(folder / item.path)
                    getattr(split, part).append(item)
        return Split(split.test, [], split.test) if cls.test_only else split

    @classmethod
    def draw_into(cls, folder: Path) -> None:
        """Draw all images and their manifest; ``folder`` appears once it is complete."""
        if folder.is_dir() and not (folder / "manifest.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)  # incomplete, of an older version
        unfinished = io.temporary_next_to(io.writable_dir(folder.parent) / folder.name)
        try:
            unfinished.mkdir()
            io.write_json(unfinished / "manifest.json", cls.draw(unfinished)._asdict())
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # it exists if another run was faster: the same content
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def locate(self, cfg) -> None:
        self.dataset_dir = self.root / type(self).dataset_dir

    def advice(self) -> str:
        return self.source.format(dir=self.image_dir)

    def load_split(self) -> Split:
        for base in (self.dataset_dir, self.cache_dir):
            self.image_dir = base / self.version
            if (self.image_dir / "manifest.json").is_file():
                io.sweep(base, self.version)  # a run was killed while another one drew them
                return read_split(self.image_dir / "manifest.json")
        try:
            self.draw_into(self.image_dir)
        except OSError as error:
            raise UserError(
                f"cannot draw the images in '{self.image_dir}' ({error.strerror or error}); "
                "free some space or set DATASET.CACHE_DIR to a folder that is writable"
            ) from error
        return read_split(self.image_dir / "manifest.json")


@register
class Shapes(Drawn):
    """32 classes of a colour and a shape, 64x64; 32 / 8 / 40 images per class."""

    dataset_dir = "shapes"
    version = "e86d3afa"
