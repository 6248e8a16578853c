"""The shared base of the data sets: CoOp's folders, its split files and its few-shot draw."""

import gc
import os
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

from ..config import host
from ..config.keys import check_template
from ..prompting import templates
from ..utils import io
from ..utils.errors import UserError
from ..utils.subset import stratified_subset
from .files import missing_files
from .sampling import Item, Split, draw_shots, shortage, subsample_classes
from .sources import find_source
from .splits import check_labels, read_shots, read_split

COOP: "dict[str, type[CoOpDataset]]" = {}  # name in configs/datasets -> class, of sources.yaml


def register(cls):
    """Register a data set class under its own name; a fork's class of that name takes precedence.

    CoOp's sets have the attributes of ``sources.yaml`` that they do not define.
    """
    if source := find_source(cls):
        COOP.setdefault(source.config, cls)
        for name in source.layout.keys() - vars(cls).keys():
            setattr(cls, name, source.layout[name])
    host.register_unless_taken(DATASET_REGISTRY, cls)
    return cls


def writable(folder) -> bool:
    """Return True if files may be put into ``folder``, which need not exist yet."""
    folder = os.path.abspath(folder)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    # without any write permission it is read-only for root, too
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


class CoOpDataset(DatasetBase):
    """A data set in ``cfg.DATASET.ROOT`` with CoOp's folder names and split file.

    Reads ``DATASET.{ROOT, NUM_SHOTS, SUBSAMPLE_CLASSES, CACHE_DIR, TEMPLATE}``, ``SEED``,
    ``OUTPUT_DIR`` and ``TEST.{SUBSET, FIRST}``. ``NUM_SHOTS`` below 1 means all images. A
    subclass names its folders and defines `make_split`. ``template`` is the hand-made prompt of
    this data set, with ``{}`` for the class, ``image_dir`` and ``cache_dir`` are absolute folders
    of the images and of what is derived from them. UserError if folders or images are missing, or
    the split file is not of CoOp's form.
    """

    dataset_dir = ""  # folder under the root
    image_folder = ""  # folder of the images, under dataset_dir
    split_file = ""  # CoOp's split file in dataset_dir
    n_classes = 0  # of a complete copy; 0: any number
    test_only = False  # cannot be trained on: its training images are only placeholders
    short = ""  # or which class has fewer training images than shots: see DATASET.FEWER_SHOTS
    numbered_at_random = False  # the names of test images do not follow the classes
    source = ""  # of data sets that are not in sources.yaml: where the files come from
    set_sha256 = ""  # of class names and lists of all images, whichever part a run uses

    def __init__(self, cfg):
        self.name = type(self).__name__
        self.root = Path(cfg.DATASET.ROOT).expanduser().absolute()
        self.locate(cfg)
        self.image_dir = self.dataset_dir / self.image_folder
        self.cache_dir = cache_folder(cfg, self.dataset_dir)
        self.template = getattr(cfg.DATASET, "TEMPLATE", "") or templates.template_for(self.name)
        check_template("DATASET.TEMPLATE", self.template or "nothing")
        gc.disable()  # garbage collection would scan lists of many small objects repeatedly
        try:
            split = self.load(cfg.DATASET.NUM_SHOTS, cfg.SEED)
            self.set_sha256 = self.set_sha256 or io.json_digest(split.test)
            split = subsample_classes(split, getattr(cfg.DATASET, "SUBSAMPLE_CLASSES", "all"))
            split = split._replace(test=self.choose_test(split.test, cfg.TEST))
            train, val, test = self.to_datums(split)
        finally:
            gc.enable()
        super().__init__(train_x=train, val=val, test=test)

    def locate(self, cfg) -> None:
        """Set ``dataset_dir`` to an absolute folder; it must exist afterwards."""
        self.dataset_dir = self.root / type(self).dataset_dir
        if not self.dataset_dir.is_dir():
            raise UserError(
                f"data set {self.name} is missing: folder '{self.dataset_dir}' does not exist; "
                f"{self.advice()}; or set DATASET.ROOT (--root, DATA in the scripts) to the folder "
                f"that holds '{self.dataset_dir.name}'"
            )

    def advice(self) -> str:
        """Return where the files come from and where they belong, as the end of a sentence."""
        source = find_source(type(self))
        if source is None:
            return self.source.format(dir=self.dataset_dir)
        return source.advice(self.dataset_dir)

    def load(self, shots: int, seed: int) -> Split:
        """Return the split; with ``shots`` of 1 or more, training and validation are drawn."""
        split = self.load_split()
        check_labels(split, self.name)
        if self.test_only:
            return split
        self.set_sha256 = io.json_digest(split)
        return split if shots < 1 else self.load_shots(split, shots, seed)

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
        io.write_json(self.cache_dir / self.split_file, split._asdict())
        print(f"Made the split and saved it to {self.cache_dir / self.split_file}")
        return split

    def load_shots(self, split: Split, shots: int, seed: int) -> Split:
        """Draw the training and validation items of this seed.

        They are kept in ``split_fewshot/shot_{n}-seed_{s}.json``; a file of another split, or a
        damaged one, is replaced. Classes with fewer images than shots use all they have, as in
        CoOp; ``short`` then names them and nothing is kept.
        """
        path = self.cache_dir / "split_fewshot" / f"shot_{shots}-seed_{seed}.json"
        key = {"shots": shots, "seed": seed, "split": self.set_sha256}
        if stored := read_shots(path, key):
            io.sweep(path.parent, path.name)
            print(f"Loading few-shot data from {path}")
            return Split(*stored, split.test)
        print(f"Creating a {shots}-shot dataset")
        train, val = draw_shots(split.train, split.val, shots, seed)
        self.short = shortage(split.train, shots)
        if not self.short:
            rows = {"checksum": io.json_digest([train, val]), "train": train, "val": val}
            io.write_json(path, key | rows)
        return Split(train, val, split.test)

    def choose_test(self, test: list[Item], keys) -> list[Item]:
        """Return the test images that ``TEST.SUBSET`` or ``TEST.FIRST`` leave (0: all).

        TEST.FIRST takes them by file name, as papers do with ImageNet's shuffled validation
        images; in other data sets these would be of a few classes only.
        """
        subset, first = (getattr(keys, name, 0) for name in ("SUBSET", "FIRST"))
        if not first:
            return stratified_subset(test, subset)
        if subset:
            raise UserError(
                f"TEST.SUBSET is {subset} and TEST.FIRST is {first}; set one of them to 0"
            )
        if not self.numbered_at_random:
            raise UserError(
                f"TEST.FIRST is {first}, but the file names of {self.name} follow its classes, so "
                "that the first images are of a few classes only; use TEST.SUBSET"
            )
        return sorted(test, key=lambda item: item.path.rpartition("/")[::-1])[:first]

    def to_datums(self, split: Split) -> list[list[Datum]]:
        """Turn the items that are used into Dassl's form, once all their files are found."""
        folder = str(self.image_dir)
        used = [item.path for items in split for item in items]
        if missing := missing_files(folder, used):
            first = ", ".join(f"'{path}'" for path in missing[:3])
            raise UserError(
                f"data set {self.name} is incomplete: {len(missing)} of {len(used)} images are "
                f"missing from '{folder}' (such as {first}); {self.advice()}"
            )
        return [
            [ListedDatum(f"{folder}/{path}", label, classname) for path, label, classname in items]
            for items in split
        ]


class ListedDatum(Datum):
    """A Datum whose file is known to exist; Dassl's own checks each of a million on the disk."""

    def __init__(self, impath: str, label: int, classname: str):
        self._impath = impath
        self._label = label
        self._domain = 0
        self._classname = classname
