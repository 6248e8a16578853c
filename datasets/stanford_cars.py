"""Stanford Cars: 196 models of cars with their years (Krause et al., 2013)."""

import random

from .annotations import read_mat
from .base import SPLIT_SEED, CoOpDataset, register
from .sampling import Item, Split, split_trainval


def year_first(name: str) -> str:
    """Turn ``Audi TTS Coupe 2012`` into ``2012 Audi TTS Coupe``."""
    model, _, year = name.rpartition(" ")
    return f"{year} {model}"


@register
class StanfordCars(CoOpDataset):
    """The official training and test images; a fifth of the former is validation."""

    dataset_dir = "stanford_cars"  # paths of the split start with cars_train/ or cars_test/
    split_file = "split_zhou_StanfordCars.json"
    n_classes = 196
    numbered_at_random = True

    @classmethod
    def expected(cls, sizes):
        return {"cars_train": (0, sum(sizes[:2])), "cars_test": (0, sizes[2])}

    def make_split(self) -> Split:
        names = read_mat(
            self,
            "devkit/cars_meta.mat",
            lambda mat: [year_first(str(name[0])) for name in mat["class_names"][0]],
        )

        def read_list(folder: str, file: str) -> list[Item]:
            def parse(mat):
                rows = mat["annotations"][0]
                labels = [int(row["class"][0, 0]) - 1 for row in rows]  # counted from 1 there
                if min(labels) < 0:
                    raise ValueError(f"class {min(labels) + 1}")
                return [
                    Item(f"{folder}/{row['fname'][0]}", label, names[label])
                    for row, label in zip(rows, labels, strict=True)
                ]

            return read_mat(self, file, parse)

        trainval = read_list("cars_train", "devkit/cars_train_annos.mat")
        train, val = split_trainval(trainval, random.Random(SPLIT_SEED))
        return Split(train, val, read_list("cars_test", "cars_test_annos_withlabels.mat"))
