"""ImageNet: 1,000 kinds of objects (ILSVRC 2012; Deng et al., 2009)."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tqdm import tqdm

from ..utils import io
from ..utils.errors import UserError
from .annotations import read_rows
from .base import CoOpDataset, register
from .files import class_folders, image_names
from .sampling import Item, Split
from .splits import check_labels, split_digest

NAMES = "classnames.txt"


def read_classnames(data) -> dict[str, str]:
    """Read CoOp's ``classnames.txt``, lines such as ``n01440764 tench``, in its order.

    The four test sets that come with ImageNet's classes may use ImageNet's file.
    """

    def parse(line: str) -> tuple[str, str]:
        folder, _, name = line.partition(" ")
        if not name:
            raise ValueError(line)
        return folder, name

    name, shared = NAMES, data.root / ImageNet.dataset_dir / NAMES
    if not (data.dataset_dir / NAMES).is_file() and shared.is_file():
        name = os.path.relpath(shared, data.dataset_dir)
    return dict(read_rows(data, name, parse, "a WordNet number and a class name"))


def named(data, folders, names: dict[str, str]) -> list[tuple[str, str]]:
    """Return folder and class name of each of ``folders``, whose order is that of the labels."""
    for folder in folders:
        if folder not in names:
            raise UserError(
                f"data set {data.name}: folder '{folder}' is not in '{NAMES}'; remove it, or "
                f"{data.advice()}"
            )
    return [(folder, names[folder]) for folder in folders]


@register
class ImageNet(CoOpDataset):
    """The test images are the official validation images, and there are no others to validate on.

    File names are listed once, into ``preprocessed.json``; class folders that changed since are
    listed again. Names are sorted; CoOp takes them in the order of the disk, so its draws agree
    with these only where the disk sorts them too.
    """

    dataset_dir = "imagenet"
    image_folder = "images"
    numbered_at_random = True
    n_classes = 1000

    @classmethod
    def expected(cls, sizes):
        return {"images/train": (1000, sizes[0]), "images/val": (1000, sizes[2])}

    def load(self, shots: int, seed: int) -> Split:
        names = read_classnames(self)
        index = self.load_index()
        classes = named(self, index["train"], names)

        def items(part: str) -> list[Item]:
            return [
                Item(f"{part}/{folder}/{name}", label, classname)
                for label, (folder, classname) in enumerate(classes)
                for name in index[part][folder]["names"].split("/")
            ]

        if shots < 1:
            split = Split(items("train"), [], items("val"))
        else:
            content = [classes, [entry["names"] for entry in index["train"].values()]]
            digest = split_digest(content)
            train, _ = self.load_shots(lambda: (items("train"), []), digest, shots, seed)
            split = Split(train, [], items("val"))
        check_labels(split, self.name)
        return split

    def load_index(self) -> dict[str, dict[str, dict]]:
        """Return part -> class folder -> ``names`` of its images, joined by /, and its ``time``."""
        for part in ("train", "val"):
            if not (self.image_dir / part).is_dir():
                raise UserError(
                    f"data set {self.name} is incomplete: '{self.image_dir / part}' is not there; "
                    f"{self.advice()}"
                )
        paths = [folder / "preprocessed.json" for folder in (self.cache_dir, self.dataset_dir)]
        stored = next(filter(None, map(read_index, paths)), {})
        index = {
            part: self.list_part(self.image_dir / part, stored.get(part, {}))
            for part in ("train", "val")
        }
        if odd := sorted(set(index["train"]) ^ set(index["val"])):
            raise UserError(
                f"data set {self.name} is incomplete: class folder '{odd[0]}' (and {len(odd) - 1} "
                f"more) is in only one of train and val below '{self.image_dir}'; {self.advice()}"
            )
        if index != stored:
            io.write_json(paths[0], index)
            print(f"Saved the list of images to {paths[0]}")
        return index

    def list_part(self, folder: Path, stored: dict) -> dict[str, dict]:
        """List the images of each class folder; what did not change since comes from ``stored``."""
        times = {name: os.stat(folder / name).st_mtime_ns for name in class_folders(folder)}
        found = {
            name: stored[name] if stored.get(name, {}).get("time") == time else None
            for name, time in times.items()
        }
        changed = [name for name, entry in found.items() if entry is None]
        for name in tqdm(changed, f"Listing {folder.name}", unit="folder", disable=not changed):
            names = image_names(folder / name)
            if not names:
                raise UserError(
                    f"class folder '{folder / name}' has no images; add them or remove the folder "
                    "from train and val"
                )
            found[name] = {"time": times[name], "names": "/".join(names)}
        return found


def read_index(path: Path) -> dict | None:
    """Read what `ImageNet.load_index` wrote; None where it is absent or damaged."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        entries = [entry for part in ("train", "val") for entry in index[part].values()]
        whole = all(isinstance(e["time"], int) and isinstance(e["names"], str) for e in entries)
        return index if whole else None
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return None
