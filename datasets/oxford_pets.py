"""Oxford-IIIT Pets: 37 breeds of cats and dogs (Parkhi et al., 2012)."""

import random

from . import core
from .base import SPLIT_SEED, CoOpDataset, register
from .sampling import Item, Split, split_trainval


@register
class OxfordPets(CoOpDataset):
    """The official train and test lists; a fifth of the training images is validation."""

    dataset_dir = "oxford_pets"
    image_folder = "images"
    split_file = "split_zhou_OxfordPets.json"
    source = (
        "unpack images.tar.gz and annotations.tar.gz from "
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data/ into '{dir}' and put CoOp's split file "
        "(https://drive.google.com/file/d/1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs) beside them"
    )

    def make_split(self) -> Split:
        train, val = split_trainval(self.read_list("trainval.txt"), random.Random(SPLIT_SEED))
        return Split(train, val, self.read_list("test.txt"))

    def read_list(self, name: str) -> list[Item]:
        """Read lines such as ``Abyssinian_100 1 1 1``: image, 1-based class, species, breed."""
        path = self.dataset_dir / "annotations" / name
        if not path.is_file():
            raise core.UserError(
                f"data set {self.name} is incomplete: neither '{self.split_file}' nor "
                f"'annotations/{name}' is in '{self.dataset_dir}'; {self.advice()}"
            )
        items = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                image, label, _, _ = line.split()
                items.append(Item(f"{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower()))
            except ValueError as error:
                raise core.UserError(
                    f"'{path}' has the line '{line}', expected an image name and three numbers; "
                    f"{self.advice()}"
                ) from error
        return items
