"""ImageNet, and the four test sets that come with its classes."""

from collections.abc import Iterable, Mapping

from ..utils.errors import UserError
from ..utils.io import json_digest
from .annotations import read_rows
from .base import register
from .folder import ClassFolders
from .sampling import Split

NAMES = "classnames.txt"


class ClassesOfImageNet(ClassFolders):
    """Folders that are named by WordNet numbers, and CoOp's names of their classes."""

    def read_classnames(self) -> dict[str, str]:
        """Read CoOp's ``classnames.txt``, here or ImageNet's: lines such as ``n01440764 tench``."""

        def parse(line: str) -> tuple[str, str]:
            folder, _, name = line.partition(" ")
            if not name:
                raise ValueError(line)
            return folder, name

        shared = self.root / ImageNet.dataset_dir / NAMES
        elsewhere = not (self.dataset_dir / NAMES).is_file() and shared.is_file()
        expected = "a WordNet number and a class name"
        return dict(read_rows(self, str(shared) if elsewhere else NAMES, parse, expected))

    def named(self, folders: Iterable[str], names: Mapping[str, str]) -> list[tuple[int, str, str]]:
        """Return label, folder and class name of ``folders``, which are in the labels' order."""
        for folder in folders:
            if folder not in names:
                raise UserError(
                    f"data set {self.name}: folder '{folder}' is not in '{NAMES}'; remove it, or "
                    f"{self.advice()}"
                )
        return [(label, folder, names[folder]) for label, folder in enumerate(folders)]


@register
class ImageNet(ClassesOfImageNet):
    """1,000 kinds of objects (ILSVRC 2012; Deng et al., 2009).

    The test images are the official validation images, and there are no others to validate on.
    Names are sorted; CoOp takes them in the order of the file system, so that its draws agree with
    these only if that order is sorted, too.
    """

    numbered_at_random = True

    def load(self, shots: int, seed: int) -> Split:
        split = super().load(shots, seed)
        self.set_sha256 = json_digest(split.test)
        return split

    def load_split(self) -> Split:
        names = self.read_classnames()
        train, val = (self.classes_in(self.image_dir / part) for part in ("train", "val"))
        if odd := sorted(set(train) ^ set(val)):
            raise UserError(
                f"data set {self.name} is incomplete: class folder '{odd[0]}' (and {len(odd) - 1} "
                f"more) is in only one of train and val of '{self.image_dir}'; {self.advice()}"
            )
        classes = self.named(train, names)
        return Split(self.list_classes("train", classes), [], self.list_classes("val", classes))


class ImageNetVariant(ClassesOfImageNet):
    """Images of ImageNet's classes, for prompts that were trained elsewhere.

    They cannot be trained on. CoOp uses the test images as training images; here the first one
    of each class is the only training image, so that the classes are known and the number of shots
    has no effect.
    """

    test_only = True

    def load_split(self) -> Split:
        present = self.classes_in(self.image_dir, self.n_classes)
        test = self.list_classes("", self.named(present, self.read_classnames()))
        first = {item.label: item for item in reversed(test)}
        return Split([first[label] for label in range(len(present))], [], test)


@register
class ImageNetV2(ImageNetVariant):
    """New images of ImageNet's classes, matched frequency, ten each (Recht et al., 2019)."""

    def named(self, folders, names):
        """Name the folders, which are numbered by the order of ``classnames.txt``, from 0."""
        numbered = {str(label): name for label, name in enumerate(names.values())}
        return super().named(sorted(folders, key=lambda name: (len(name), name)), numbered)


@register
class ImageNetSketch(ImageNetVariant):
    """About 50 drawings of each of ImageNet's classes (Wang et al., 2019)."""


@register
class ImageNetA(ImageNetVariant):
    """Photos of 200 classes that a ResNet-50 gets wrong (Hendrycks et al., 2021)."""


@register
class ImageNetR(ImageNetVariant):
    """Art, cartoons, toys and other renditions of 200 classes (Hendrycks et al., 2021)."""
