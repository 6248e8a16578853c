"""How many classes and images a configuration's data set has, without opening an image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from dassl.data.datasets import DATASET_REGISTRY

from ..datasets import base, shapes, shifts, sources
from ..utils import errors


class Sizes(NamedTuple):
    """Numbers of classes, training and test images."""

    classes: int
    train: int
    test: int


def sizes_of(cfg) -> tuple[Sizes | None, str]:
    """Return what a run with ``cfg`` would train and test on, and what is missing of the data.

    The split file is counted where it lies, else the published sizes hold; a data set that
    neither knows has None.
    """
    missing = ""
    try:
        whole = _counted(cfg)
    except errors.UserError as error:
        whole, missing = None, str(error)
    whole = whole or _published(cfg.DATASET.NAME)
    return (_chosen(cfg, whole) if whole else None), missing


def _counted(cfg) -> Sizes | None:
    """Count the items of the data set's split; None where there is no split to be read.

    Raises:
        UserError: the data set's folder is not there, or its split file is damaged.
    """
    made = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if not hasattr(made, "locate"):  # a fork's own
        return None
    if issubclass(made, shifts.DrawnTest):
        classes = len(made.class_names())
        return Sizes(classes, 0, classes * shifts.PER_CLASS)
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


def _published(name: str) -> Sizes | None:
    """Return the sizes of a whole data set from the tables of where they come from."""
    if name == "Shapes":
        classes = len(shapes.drawing.shape_classes())
        return Sizes(classes, *(classes * shapes.IMAGES_PER_CLASS[p] for p in ("train", "test")))
    source = sources.read_sources().get(name)
    classes = DATASET_REGISTRY.get(name).n_classes if source else 0
    return Sizes(classes, source.sizes[0], source.sizes[2]) if source else None


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
