"""The shared base of the data sets: CoOp's folders, its split files and its few-shot draw."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

from . import core
from .sampling import Item, Split, draw_shots, stratified_subset, subsample_classes

UserError = core.UserError
SPLIT_SEED = 1  # of splits made here, whatever the seed of the run
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def register(cls):
    """Register a data set class under its own name, unless that name is taken."""
    if cls.__name__ not in DATASET_REGISTRY.registered_names():
        DATASET_REGISTRY.register(cls)
    return cls


def writable(folder) -> bool:
    """Tell whether files may be put into ``folder``, which need not exist yet.

    A folder without any write permission counts as read-only for root, too.
    """
    folder = os.path.abspath(folder)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    permitted = os.path.isdir(folder) and os.stat(folder).st_mode & 0o222
    return bool(permitted) and os.access(folder, os.W_OK)


def cache_folder(cfg, dataset_dir: Path) -> Path:
    """Where files made from a data set go: few-shot draws, splits, drawn images.

    ``DATASET.CACHE_DIR/<folder>`` where that key is set, else the data set's own folder where
    it is writable, else ``OUTPUT_DIR/cache/<folder>``.
    """
    if chosen := getattr(cfg.DATASET, "CACHE_DIR", ""):
        return Path(chosen).expanduser().absolute() / dataset_dir.name
    if writable(dataset_dir):
        return dataset_dir
    return Path(cfg.OUTPUT_DIR).expanduser().absolute() / "cache" / dataset_dir.name


def list_images(folder: Path) -> list[str]:
    """Return the image files below ``folder``, sorted, as paths relative to it (with /)."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name).relative_to(folder).as_posix()
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder``, hidden ones left out, sorted."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def split_digest(split: Split) -> str:
    """Return a hex digest of a split's paths, labels and class names in their order."""
    return hashlib.sha256(json.dumps(split).encode()).hexdigest()


class CoOpDataset(DatasetBase):
    """A data set below ``cfg.DATASET.ROOT`` with CoOp's folder names and split file.

    Reads ``DATASET.{ROOT, NUM_SHOTS, SUBSAMPLE_CLASSES, CACHE_DIR, TEMPLATE}``, ``SEED``,
    ``OUTPUT_DIR`` and ``TEST.SUBSET``. ``NUM_SHOTS`` below 1 means all images. A subclass names
    its folders and defines `make_split`.

    Attributes:
        template: the hand-made prompt of this data set, ``{}`` standing for the class.
        image_dir, cache_dir: absolute folders of the images and of what is derived from them.

    Raises:
        UserError: folders or images are missing, the split file is not of CoOp's form, or a
            class has fewer training images than shots.
    """

    dataset_dir = ""  # folder under the root
    image_folder = ""  # folder of the images, under dataset_dir
    split_file = ""  # CoOp's split file in dataset_dir
    source = ""  # where the files come from, as the end of a sentence

    def __init__(self, cfg):
        self.name = type(self).__name__
        self.root = Path(cfg.DATASET.ROOT).expanduser().absolute()
        self.locate(cfg)
        self.image_dir = self.dataset_dir / self.image_folder
        self.cache_dir = cache_folder(cfg, self.dataset_dir)
        self.template = getattr(cfg.DATASET, "TEMPLATE", "") or core.templates.template_for(
            self.name
        )
        if "{}" not in self.template:
            raise UserError(
                f"DATASET.TEMPLATE is '{self.template}', expected '{{}}' in the place of the class"
            )
        split = self.load_split()
        check_labels(split, self.name)
        shots = cfg.DATASET.NUM_SHOTS
        if shots >= 1:
            train, val = self.load_shots(split, shots, cfg.SEED)
            split = split._replace(train=train, val=val)
        split = subsample_classes(split, getattr(cfg.DATASET, "SUBSAMPLE_CLASSES", "all"))
        split = split._replace(test=stratified_subset(split.test, getattr(cfg.TEST, "SUBSET", 0)))
        train, val, test = self.to_datums(split)
        super().__init__(train_x=train, val=val, test=test)

    def locate(self, cfg) -> None:
        """Set ``dataset_dir`` to an absolute folder; it must exist afterwards."""
        self.dataset_dir = self.root / type(self).dataset_dir
        if not self.dataset_dir.is_dir():
            raise UserError(
                f"data set {self.name} is not there: folder '{self.dataset_dir}' does not exist; "
                f"{self.advice()}; or set DATASET.ROOT (--root, DATA in the scripts) to the folder "
                f"that holds '{self.dataset_dir.name}'"
            )

    def advice(self) -> str:
        """Say where the files come from and where they belong."""
        return self.source.format(dir=self.dataset_dir)

    def make_split(self) -> Split:
        """Make the split from the original files, as CoOp does where its file is absent."""
        raise NotImplementedError

    def load_split(self) -> Split:
        """Read CoOp's split file; where there is none, make the split and keep it."""
        for folder in (self.dataset_dir, self.cache_dir):
            if (folder / self.split_file).is_file():
                print(f"Reading split from {folder / self.split_file}")
                return read_split(folder / self.split_file)
        if not self.image_dir.is_dir():
            raise UserError(
                f"data set {self.name} is incomplete: neither '{self.split_file}' nor the folder "
                f"'{self.image_folder}' is in '{self.dataset_dir}'; {self.advice()}"
            )
        split = self.make_split()
        core.io.write_json(self.cache_dir / self.split_file, split._asdict())
        print(f"Made the split and saved it to {self.cache_dir / self.split_file}")
        return split

    def load_shots(self, split: Split, shots: int, seed: int) -> tuple[list, list]:
        """Return the few-shot training and validation items of this split and seed.

        They are kept in ``split_fewshot/shot_{n}-seed_{s}.json``; a file made from another
        split, or one that cannot be read, is made anew.
        """
        path = self.cache_dir / "split_fewshot" / f"shot_{shots}-seed_{seed}.json"
        key = {"shots": shots, "seed": seed, "split": split_digest(split)}
        stored = read_shots(path, key)
        if stored and set(stored[0]) <= set(split.train) and set(stored[1]) <= set(split.val):
            print(f"Loading few-shot data from {path}")
            return stored
        print(f"Creating a {shots}-shot dataset")
        train, val = draw_shots(split.train, split.val, shots, seed)
        core.io.write_json(path, key | {"train": train, "val": val})
        return train, val

    def to_datums(self, split: Split) -> list[list[Datum]]:
        """Turn the items that are used into Dassl's form, once all their files are found."""
        folder = str(self.image_dir)
        used = [[os.path.join(folder, item.path) for item in items] for items in split]
        missing = [path for paths in used for path in paths if not os.path.isfile(path)]
        if missing:
            first = ", ".join(f"'{os.path.relpath(path, folder)}'" for path in missing[:3])
            raise UserError(
                f"data set {self.name} is incomplete: {len(missing)} of {sum(map(len, used))} "
                f"images are missing from '{folder}' (such as {first}); {self.advice()}"
            )
        return [
            [
                Datum(impath=path, label=item.label, classname=item.classname)
                for path, item in zip(paths, items, strict=True)
            ]
            for paths, items in zip(used, split, strict=True)
        ]


def to_items(rows) -> list[Item]:
    """Turn JSON rows [path, label, class name] into items."""
    return [Item(str(path), int(label), str(name)) for path, label, name in rows]


def read_split(path) -> Split:
    """Read a split file of CoOp's form: train, val and test, each [path, label, class name]s."""
    stored = core.io.read_json(path)
    try:
        return Split(*(to_items(stored[part]) for part in Split._fields))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"'{path}' is no split file (expected train, val and test with rows of path, label "
            "and class name); fetch it again, or delete it to have the split made"
        ) from error


def read_shots(path: Path, key: dict) -> tuple[list, list] | None:
    """Read a few-shot file, or return None where it is absent, damaged or of another split."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if any(stored[name] != value for name, value in key.items()):
            return None
        return to_items(stored["train"]), to_items(stored["val"])
    except (OSError, KeyError, TypeError, ValueError):
        return None


def check_labels(split: Split, name: str) -> None:
    """Check that labels count from 0, each with one class name, and that nothing is empty."""
    for part in ("train", "test"):
        if not getattr(split, part):
            raise UserError(f"data set {name} has no {part} images; check its split and folders")
    names = {item.label: item.classname for item in split.train}
    if sorted(names) != list(range(len(names))):
        raise UserError(
            f"data set {name} has training labels {sorted(names)}, expected 0 to "
            f"{len(names) - 1}; check its split file"
        )
    for items in split:
        for item in items:
            if names.get(item.label) != item.classname:
                raise UserError(
                    f"data set {name}: '{item.path}' has label {item.label} and class "
                    f"'{item.classname}', which no training image has; check its split file"
                )
