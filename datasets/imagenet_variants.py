"""Test sets with ImageNet's classes: what they share."""

from __future__ import annotations

from ..utils.errors import UserError
from .base import CoOpDataset
from .files import class_folders, image_names
from .imagenet import named, read_classnames
from .sampling import Item, Split
from .splits import check_labels


class ImageNetVariant(CoOpDataset):
    """Images of ImageNet's classes in one folder each, for prompts that were trained elsewhere.

    There is nothing to train on. CoOp uses the test images as training images; here the first one
    of each class stands in, so that the classes are known, and the number of shots has no effect.
    """

    n_classes = 1000
    test_only = True

    @classmethod
    def expected(cls, sizes):
        return {cls.image_folder: (cls.n_classes, sizes[2])}

    def load(self, shots: int, seed: int) -> Split:
        present = class_folders(self.image_dir) if self.image_dir.is_dir() else []
        if len(present) != self.n_classes:
            raise UserError(
                f"data set {self.name} is incomplete: '{self.image_dir}' has {len(present)} class "
                f"folders, expected {self.n_classes}; {self.advice()}"
            )
        first, test = [], []
        classes = self.classes(present, read_classnames(self))
        for label, (folder, classname) in enumerate(classes):
            names = image_names(self.image_dir / folder)
            if not names:
                raise UserError(
                    f"class folder '{self.image_dir / folder}' has no images; {self.advice()}"
                )
            items = [Item(f"{folder}/{name}", label, classname) for name in names]
            first.append(items[0])
            test += items
        split = Split(first, [], test)
        check_labels(split, self.name)
        return split

    def classes(self, present: list[str], names: dict[str, str]) -> list[tuple[str, str]]:
        """Return folder and class name of each class in the order of the labels."""
        return named(self, present, names)
