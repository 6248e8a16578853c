"""UCF101: 101 actions, each video as its middle frame (Soomro et al., 2012)."""

import random
import re

from .annotations import read_rows
from .base import SPLIT_SEED, CoOpDataset, register
from .sampling import Item, Split, split_trainval


def class_name(action: str) -> str:
    """Turn ``ApplyEyeMakeup`` into ``Apply_Eye_Makeup``."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))


@register
class UCF101(CoOpDataset):
    """The first of the official partitions; a fifth of its training images is validation."""

    dataset_dir = "ucf101"
    image_folder = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    n_classes = 101

    def make_split(self) -> Split:
        def to_class(line: str) -> tuple[str, int]:
            number, action = line.split()
            return action, int(number) - 1

        lists = "ucfTrainTestlist"
        labels = dict(read_rows(self, f"{lists}/classInd.txt", to_class, "a number and an action"))

        def to_item(line: str) -> Item:
            action, video = line.split()[0].split("/")  # the label after it is not needed
            name = class_name(action)
            return Item(f"{name}/{video.replace('.avi', '.jpg')}", labels[action], name)

        expected = "a video of an action of classInd.txt, such as Archery/v_Archery_g01_c01.avi"
        trainval = read_rows(self, f"{lists}/trainlist01.txt", to_item, expected)
        train, val = split_trainval(trainval, random.Random(SPLIT_SEED))
        return Split(train, val, read_rows(self, f"{lists}/testlist01.txt", to_item, expected))
