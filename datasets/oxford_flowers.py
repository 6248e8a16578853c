"""Oxford Flowers 102: flowers common in the United Kingdom (Nilsback and Zisserman, 2008)."""

import random

from ..utils import io
from ..utils.errors import UserError
from .annotations import find, read_mat
from .base import SPLIT_SEED, CoOpDataset, register
from .sampling import Item, Split, split_all


@register
class OxfordFlowers(CoOpDataset):
    """50 % training, 20 % validation, 30 % test."""

    dataset_dir = "oxford_flowers"
    image_folder = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    n_classes = 102

    def make_split(self) -> Split:
        labels = read_mat(self, "imagelabels.mat", lambda mat: list(map(int, mat["labels"][0])))
        path = find(self, "cat_to_name.json")
        names = io.read_json(path)  # keys are labels, counted from 1
        for label in sorted(set(labels)):
            if not isinstance(names, dict) or str(label) not in names:
                raise UserError(f"'{path}' has no name of class {label}; {self.advice()}")
        items = [
            Item(f"image_{n:05d}.jpg", label - 1, names[str(label)])
            for n, label in enumerate(labels, start=1)
        ]
        return split_all(items, random.Random(SPLIT_SEED))
