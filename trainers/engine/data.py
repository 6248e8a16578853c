"""Which data a run is about: digests of class names, lists of images, labels and contents."""

import contextlib
import io
import os
from collections import Counter
from functools import cached_property
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from ..evaluation.samples import ImageList
from ..records import completed_record, data_name, flat_config
from ..utils.errors import UserError
from ..utils.io import json_digest, read_json
from ..utils.subset import images_to_test

MODEL_FILE = "model.json"  # next to a record: trainer, backbone, classes, prompts, data


def digest_of(classnames, images: ImageList) -> str:
    """Return the digest of class names, and of names, labels and contents of images."""
    return json_digest([list(classnames), images.names(), images.digests()])


def _touched(path: str) -> tuple:
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return ()


class Data:
    """A data set as a run uses it; images are listed, and read only where that is needed."""

    def __init__(self, dataset, cfg):
        self.cfg, self.dataset = cfg, dataset
        self.name = data_name(cfg.DATASET.NAME, flat_config(cfg))
        self.classnames = list(dataset.classnames)
        self.items = images_to_test(dataset.test, cfg)
        self.test = ImageList(self.items, None)
        self.set_sha256 = getattr(dataset, "set_sha256", None)  # of our data sets

    @cached_property
    def of_training(self) -> dict:
        """What a record says of the data that a model was trained on."""
        names = sorted(ImageList(self.dataset.train_x, None).names())
        counts = Counter(item.label for item in self.dataset.train_x)
        short = sum(counts[y] < self.cfg.DATASET.NUM_SHOTS for y in range(len(self.classnames)))
        return {
            "name": self.name,
            "split": self.cfg.DATASET.SUBSAMPLE_CLASSES,
            "classes": len(self.classnames),
            "data_sha256": json_digest([self.classnames, names]),
            "set_sha256": self.set_sha256,
        } | ({"short_classes": short} if short else {})

    @cached_property
    def digest(self) -> str:
        """The digest of the tested images, which are read."""
        return digest_of(self.classnames, self.test)

    @cached_property
    def files(self) -> str:
        """A digest that is another one once a tested file was touched; nothing is read."""
        touched = list(map(_touched, self.test.paths))
        return json_digest([self.classnames, self.test.paths, self.test.labels, touched])

    def check(self, folder, record: dict, *, trained: bool) -> None:
        """Refuse a record of other data (``trained``: also of other training data).

        Compared are class names, list, labels and contents of the images; an older record says only
        how much it tested.
        """
        theirs, path = record.get("data_sha256"), Path(folder) / MODEL_FILE
        counts = (len(self.classnames), len(self.test))
        same = counts == (record["classes"], record["clean"]["n"])
        if same and theirs:
            noted = read_json(path) if path.is_file() else {}
            noted = noted.get("data_sha256"), noted.get("files_sha256")
            same = noted == (theirs, self.files) or self.digest == theirs
        source = (record.get("trained") or {}).get("set_sha256")
        if trained and source and self.set_sha256:
            same = same and source == self.set_sha256
        if not same:
            raise UserError(
                f"'{folder}' holds a run on other data than '{self.cfg.DATASET.ROOT}' has now "
                "(classes, list of images, labels or contents); choose another output folder "
                "(OUTPUT, --output-dir), or move the old run away"
            )


def listed(cfg) -> Data | None:
    """List the data of a configuration, or raise a UserError; None where it is drawn."""
    made = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if hasattr(made, "draw_into"):
        return None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return Data(made(cfg), cfg)
    except Exception as error:  # of a fork's data set: any
        raise UserError(" ".join(str(error).split())) from error


def check_listed(cfg, folder, *, trained: bool) -> str:
    """Refuse (UserError) a record of other data than is there now; a note where that is unknown."""
    try:
        data = listed(cfg)
    except UserError as error:
        return f"note: its data is not here to be compared with: {error}"
    if data:
        data.check(folder, completed_record(folder), trained=trained)
    return ""
