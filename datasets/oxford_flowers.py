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
    fetch_name = "flowers"
    source = (
        "unpack 102flowers.tgz from https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ into "
        "'{dir}' (it makes the folder jpg) and put CoOp's split file "
        "(https://drive.google.com/file/d/1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT) beside it, or "
        "imagelabels.mat from there and CoOp's cat_to_name.json "
        "(https://drive.google.com/file/d/1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0)"
    )

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
