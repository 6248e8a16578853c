"""How many classes and images a configuration's data set has, without opening an image."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import NamedTuple

from dassl.data.datasets import DATASET_REGISTRY

from . import core

errors = importlib.import_module(f"{core.__name__}.errors")


class Sizes(NamedTuple):
    """Numbers of classes, training and test images."""

    classes: int
    train: int
    test: int


# CoOp's splits (Zhou et al., IJCV 2022, table 8), the four variants of ImageNet, the built-in data
PUBLISHED = {
    "ImageNet": Sizes(1000, 1_281_167, 50_000),
    "Caltech101": Sizes(100, 4_128, 2_465),
    "OxfordPets": Sizes(37, 2_944, 3_669),
    "StanfordCars": Sizes(196, 6_509, 8_041),
    "OxfordFlowers": Sizes(102, 4_093, 2_463),
    "Food101": Sizes(101, 50_500, 30_300),
    "FGVCAircraft": Sizes(100, 3_334, 3_333),
    "SUN397": Sizes(397, 15_880, 19_850),
    "DescribableTextures": Sizes(47, 2_820, 1_692),
    "EuroSAT": Sizes(10, 13_500, 8_100),
    "UCF101": Sizes(101, 7_639, 3_783),
    "ImageNetV2": Sizes(1000, 0, 10_000),
    "ImageNetSketch": Sizes(1000, 0, 50_889),
    "ImageNetA": Sizes(200, 0, 7_500),
    "ImageNetR": Sizes(200, 0, 30_000),
    "Shapes": Sizes(32, 1_024, 1_280),
}


def sizes_of(cfg) -> tuple[Sizes | None, str]:
    """Return what a run with ``cfg`` would train and test on, and what is missing of the data.

    The split file is counted where it lies, else CoOp's published sizes hold; a data set that
    neither knows has None.
    """
    missing = ""
    try:
        whole = _counted(cfg)
    except errors.UserError as error:
        whole, missing = None, str(error)
    whole = whole or PUBLISHED.get(cfg.DATASET.NAME)
    return (_chosen(cfg, whole) if whole else None), missing


def _counted(cfg) -> Sizes | None:
    """Count the items of the data set's split; None where there is no split to be read.

    Raises:
        UserError: the data set's folder is not there, or its split file is damaged.
    """
    made = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if not hasattr(made, "locate"):  # a fork's own
        return None
    if hasattr(made, "counts"):
        return Sizes(*made.counts())
    base = importlib.import_module(f"{made.__module__.rpartition('.')[0]}.base")
    data = object.__new__(made)  # without its images, which __init__ looks for
    data.name, data.root = made.__name__, Path(cfg.DATASET.ROOT).expanduser().absolute()
    data.locate(cfg)
    data.image_dir = data.dataset_dir / data.image_folder
    path = data.dataset_dir / (data.split_file or "none")
    if path.is_file():
        split = base.read_split(path)
    elif not data.split_file and hasattr(data, "classes_in"):  # folders of classes, listed
        split = data.load_split()
    else:
        return None
    return Sizes(len({item.label for item in split.train}), len(split.train), len(split.test))


def _chosen(cfg, whole: Sizes) -> Sizes:
    """Apply shots, class subset and test subset."""
    classes, train, test = whole
    which = getattr(cfg.DATASET, "SUBSAMPLE_CLASSES", "all")
    if which != "all":
        half = math.ceil(classes / 2)
        kept = half if which == "base" else classes - half
        classes, train, test = kept, train * kept // classes, test * kept // classes
    if cfg.DATASET.NUM_SHOTS >= 1:
        train = min(classes * cfg.DATASET.NUM_SHOTS, train)
    for limit in (cfg.TEST.get("SUBSET", 0), cfg.TEST.get("FIRST", 0)):
        test = min(limit, test) if limit else test
    return Sizes(classes, train, test)
