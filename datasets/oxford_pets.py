"""Oxford-IIIT Pets: 37 breeds of cats and dogs (Parkhi et al., 2012)."""

import random

from .annotations import read_rows
from .base import SPLIT_SEED, CoOpDataset, register
from .sampling import Item, Split, split_trainval


def to_item(line: str) -> Item:
    """Read ``Abyssinian_100 1 1 1``: image, 1-based class, species, breed."""
    image, label, _, _ = line.split()
    return Item(f"{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower())


@register
class OxfordPets(CoOpDataset):
    """The official train and test lists; a fifth of the training images is validation."""

    dataset_dir = "oxford_pets"
    image_folder = "images"
    split_file = "split_zhou_OxfordPets.json"
    n_classes = 37

    def make_split(self) -> Split:
        train, val = split_trainval(self.read_list("trainval.txt"), random.Random(SPLIT_SEED))
        return Split(train, val, self.read_list("test.txt"))

    def read_list(self, name: str) -> list[Item]:
        expected = "an image name and three numbers"
        return read_rows(self, f"annotations/{name}", to_item, expected)
