"""SUN397: 397 kinds of scenes (Xiao et al., 2010)."""

import random

from .annotations import read_rows
from .base import SPLIT_SEED, CoOpDataset, register
from .sampling import Item, Split, split_trainval


def without_slash(line: str) -> str:
    """Return the path in a line such as ``/a/abbey``."""
    if not line.startswith("/"):
        raise ValueError(line)
    return line[1:]


def class_name(folder: str) -> str:
    """Turn ``a/apartment_building/outdoor`` into ``outdoor apartment_building``."""
    return " ".join(reversed(folder.split("/")[1:]))


@register
class SUN397(CoOpDataset):
    """The first of the official partitions; a fifth of its training images is validation."""

    dataset_dir = "sun397"
    image_folder = "SUN397"
    split_file = "split_zhou_SUN397.json"
    n_classes = 397

    def make_split(self) -> Split:
        folders = read_rows(self, "ClassName.txt", without_slash, "a class such as /a/abbey")
        labels = {folder: label for label, folder in enumerate(folders)}

        def to_item(line: str) -> Item:
            path = without_slash(line)
            folder = path.rpartition("/")[0]
            return Item(path, labels[folder], class_name(folder))

        expected = "an image of a class of ClassName.txt, such as /a/abbey/sun_aaa.jpg"
        trainval = read_rows(self, "Training_01.txt", to_item, expected)
        train, val = split_trainval(trainval, random.Random(SPLIT_SEED))
        return Split(train, val, read_rows(self, "Testing_01.txt", to_item, expected))
