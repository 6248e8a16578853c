"""Tiny folders in the original form of each of CoOp's data sets, split files left out.

Every maker writes one data set below a root and returns what a loader must find in it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from yacs.config import CfgNode

TEXT = "class 'sun'? 3 4"  # no annotation file has such a line


class Made(NamedTuple):
    """What is in a generated data set."""

    sizes: tuple[int, int, int]  # training, validation, test images
    names: dict[int, str]  # some labels and their class names
    classes: int
    annotations: tuple[str, ...] = ()  # below the data set's folder, all of them needed


@cache
def picture() -> bytes:
    """A grey JPEG of 8x8."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 120, 150)).save(buffer, "JPEG")
    return buffer.getvalue()


def config(root, shots=-1, *, seed=1, output="output", test=None, **dataset) -> CfgNode:
    """Return what a data set reads of a config."""
    return CfgNode(
        {
            "DATASET": {"ROOT": str(root), "NUM_SHOTS": shots, **dataset},
            "TEST": {"SUBSET": 0, "FIRST": 0, **(test or {})},
            "SEED": seed,
            "OUTPUT_DIR": str(output),
        }
    )


def images(folder: Path, names) -> None:
    """Put a picture under each of ``names`` into ``folder``."""
    for path in (folder / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())


def text(path: Path, lines, end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode())


def savemat(path: Path, **variables) -> None:
    from scipy.io import savemat as save

    path.parent.mkdir(parents=True, exist_ok=True)
    save(str(path), variables)


def oxford_pets(root: Path) -> Made:
    folder = root / "oxford_pets"
    breeds = ("Abyssinian", "american_bulldog", "Great_Pyrenees")
    for part, numbers in (("trainval", range(10)), ("test", range(100, 103))):
        rows = [f"{b}_{n} {y} 1 {y}" for n in numbers for y, b in enumerate(breeds, start=1)]
        text(folder / "annotations" / f"{part}.txt", rows)
        images(folder / "images", (f"{row.split()[0]}.jpg" for row in rows))
    lists = ("annotations/trainval.txt", "annotations/test.txt")
    return Made((24, 6, 9), {0: "abyssinian", 2: "great_pyrenees"}, 3, lists)


def oxford_flowers(root: Path) -> Made:
    import numpy as np

    folder = root / "oxford_flowers"
    labels = [3, 1] * 5 + [2] * 10 + [1, 3] * 5
    images(folder / "jpg", (f"image_{n:05d}.jpg" for n in range(1, len(labels) + 1)))
    savemat(folder / "imagelabels.mat", labels=np.array([labels], dtype=np.uint8))
    names = {"1": "pink primrose", "2": "globe-flower", "3": "bird of paradise", "4": "unused"}
    text(folder / "cat_to_name.json", [json.dumps(names)])
    lists = ("imagelabels.mat", "cat_to_name.json")
    return Made((15, 6, 9), {0: "pink primrose", 2: "bird of paradise"}, 3, lists)


def fgvc_aircraft(root: Path) -> Made:
    folder = root / "fgvc_aircraft"
    variants = ("707-320", "Eurofighter Typhoon", "F/A-18")
    text(folder / "variants.txt", variants)
    for start, part in ((10, "train"), (20, "val"), (30, "test")):
        numbered = [(n, y, name) for n in range(5) for y, name in enumerate(variants)]
        rows = [f"{start * 1000 + 10 * y + n:07d} {name}" for n, y, name in numbered]
        text(folder / f"images_variant_{part}.txt", rows)
        images(folder / "images", (f"{row[:7]}.jpg" for row in rows))
    lists = tuple(f"images_variant_{part}.txt" for part in ("train", "val", "test"))
    return Made((15, 15, 15), dict(enumerate(variants)), 3, ("variants.txt", *lists))


def class_folders(folder: Path, classes, count: int) -> None:
    for name in classes:
        images(folder / name, (f"{name}_{n:04d}.jpg" for n in range(count)))


def caltech101(root: Path) -> Made:
    kept = ("Faces", "airplanes", *(f"class_{n:02d}" for n in range(98)))
    folder = root / "caltech-101" / "101_ObjectCategories"
    class_folders(folder, ("BACKGROUND_Google", "Faces_easy", *kept), 4)
    return Made((200, 100, 100), {0: "face", 1: "airplane", 99: "class_97"}, 100)


def eurosat(root: Path) -> Made:
    from advprompt.datasets.coop import EuroSAT

    class_folders(root / "eurosat" / "2750", EuroSAT.class_names, 10)
    return Made((50, 20, 30), {0: "Annual Crop Land", 1: "Forest", 9: "Sea or Lake"}, 10)


def dtd(root: Path) -> Made:
    classes = ("banded", "blotchy", *(f"texture{n:02d}" for n in range(45)))
    class_folders(root / "dtd" / "images", classes, 4)
    text(root / "dtd" / "images" / "banded" / ".directory", ["[Dolphin]"])
    text(root / "dtd" / "labels" / "train1.txt", ["banded/banded_0000.jpg"])
    return Made((94, 47, 47), {0: "banded", 46: "texture44"}, 47)


def food101(root: Path) -> Made:
    classes = ("apple_pie", *(f"dish_{n:03d}" for n in range(100)))
    class_folders(root / "food-101" / "images", classes, 4)
    text(root / "food-101" / "meta" / "train.txt", ["apple_pie/0000"])
    return Made((202, 101, 101), {0: "apple_pie", 100: "dish_099"}, 101)


def stanford_cars(root: Path) -> Made:
    import numpy as np

    folder = root / "stanford_cars"
    cars = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012")
    names = np.empty((1, len(cars)), dtype=object)
    names[0] = cars
    savemat(folder / "devkit" / "cars_meta.mat", class_names=names)
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    files = {"cars_train": "devkit/cars_train_annos.mat"}
    files["cars_test"] = "cars_test_annos_withlabels.mat"
    for (part, file), count in zip(files.items(), (10, 4), strict=True):
        labels = [y for _ in range(count) for y in (3, 1, 2)]
        rows = np.empty((1, len(labels)), dtype=[(field, object) for field in fields])
        for n, label in enumerate(labels):
            rows[0, n] = (1, 2, 7, 8, label, f"{n + 1:05d}.jpg")
        savemat(folder / file, annotations=rows)
        images(folder / part, (f"{n + 1:05d}.jpg" for n in range(len(labels))))
    named = {0: "2000 AM General Hummer SUV", 2: "2012 smart fortwo Convertible"}
    return Made((24, 6, 12), named, 3, ("devkit/cars_meta.mat", *files.values()))


def sun397(root: Path) -> Made:
    folder = root / "sun397"
    classes = ("/a/abbey", "/a/apartment_building/outdoor", "/b/badminton_court/indoor")
    text(folder / "ClassName.txt", classes)
    for part, numbers in (("Training", range(10)), ("Testing", range(10, 14))):
        rows = [
            f"{name}/sun_{chr(97 + n)}{y}.jpg" for y, name in enumerate(classes) for n in numbers
        ]
        text(folder / f"{part}_01.txt", rows)
        images(folder / "SUN397", (row[1:] for row in rows))
    named = {0: "abbey", 1: "outdoor apartment_building", 2: "indoor badminton_court"}
    lists = ("ClassName.txt", "Training_01.txt", "Testing_01.txt")
    return Made((24, 6, 12), named, 3, lists)


def ucf101(root: Path) -> Made:
    folder = root / "ucf101"
    lists = folder / "ucfTrainTestlist"
    actions = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
    text(lists / "classInd.txt", [f"{y} {a}" for y, a in enumerate(actions, start=1)], "\r\n")
    names = ("Apply_Eye_Makeup", "Handstand_Pushups", "Yo_Yo")
    for part, groups in (("train", range(8, 18)), ("test", range(1, 5))):
        rows = []
        for y, (action, name) in enumerate(zip(actions, names, strict=True), start=1):
            videos = [f"v_{action.replace('stand', 'Stand')}_g{g:02d}_c01" for g in groups]
            images(folder / "UCF-101-midframes" / name, (f"{video}.jpg" for video in videos))
            rows += [f"{action}/{video}.avi" + f" {y}" * (part == "train") for video in videos]
        text(lists / f"{part}list01.txt", rows + [""] * (part == "test"), "\r\n")
    files = tuple(f"ucfTrainTestlist/{f}.txt" for f in ("classInd", "trainlist01", "testlist01"))
    return Made((24, 6, 12), dict(enumerate(names)), 3, files)


def wordnet(classes: int) -> list[str]:
    """Names of ImageNet's class folders, in sorted order."""
    return [f"n{1440764 + 9731 * n:08d}" for n in range(classes)]


def classnames(folder: Path, classes: int = 1000) -> None:
    lines = ["n01440764 tench", *(f"{w} great thing {n}" for n, w in enumerate(wordnet(classes)))]
    text(folder / "classnames.txt", [lines[0], *lines[2:]])


def imagenet(root: Path, classes: int = 5, train: int = 6, val: int = 2) -> Made:
    """Validation images are numbered across the classes: 1, 1 + classes, ... for the first."""
    folder = root / "imagenet"
    classnames(folder, classes)
    for label, name in enumerate(wordnet(classes)):
        images(folder / "images" / "train" / name, (f"{name}_{n}.JPEG" for n in range(train)))
        numbers = (1 + label + n * classes for n in range(val))
        images(folder / "images" / "val" / name, (f"ILSVRC2012_val_{n:08d}.JPEG" for n in numbers))
    named = {0: "tench", classes - 1: f"great thing {classes - 1}"}
    return Made((classes * train, 0, classes * val), named, classes, ("classnames.txt",))


def only_tests(place: str, of_all: int, *files: str, numbered=False, every: int = 1) -> Callable:
    """Return the maker of a test set whose ``of_all`` classes are one in ``every`` of ImageNet's.

    Args:
        numbered: folders are called 0, 1, ..., instead of WordNet's names.
    """

    def make(root: Path, classes: int = of_all) -> Made:
        folder, count = root / place, every * classes
        classnames(folder.parent, count)
        chosen = range(0 if every == 1 else 3, count, every)
        names = [str(n) for n in range(count)] if numbered else wordnet(count)
        for n in chosen:
            images(folder / names[n], files)
        if every > 1:
            text(folder / "README.txt", [f"{of_all} classes"])
        first, last = ("tench" if n == 0 else f"great thing {n}" for n in (chosen[0], chosen[-1]))
        named = {0: first, classes - 1: last}
        return Made((classes, 0, len(files) * classes), named, classes, ("classnames.txt",))

    return make


V2 = "imagenetv2/imagenetv2-matched-frequency-format-val"
A_FIFTH = ("0.1_fox_0.9.jpg", "art_0.jpg", "toy_3.jpg")
MAKERS = {
    "Caltech101": caltech101,
    "EuroSAT": eurosat,
    "DescribableTextures": dtd,
    "Food101": food101,
    "OxfordPets": oxford_pets,
    "OxfordFlowers": oxford_flowers,
    "FGVCAircraft": fgvc_aircraft,
    "StanfordCars": stanford_cars,
    "SUN397": sun397,
    "UCF101": ucf101,
    "ImageNet": imagenet,
    "ImageNetV2": only_tests(V2, 1000, "5.jpeg", "a.jpeg", numbered=True),
    "ImageNetSketch": only_tests("imagenet-sketch/images", 1000, "sketch_0.JPEG", "sketch_1.JPEG"),
    "ImageNetA": only_tests("imagenet-adversarial/imagenet-a", 200, *A_FIFTH, every=5),
    "ImageNetR": only_tests("imagenet-rendition/imagenet-r", 200, *A_FIFTH, every=5),
}
