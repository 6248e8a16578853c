"""Folders of classes: the user's own images, and the base of sets that come that way."""

import random
from pathlib import Path

from ..utils.errors import UserError
from .base import SPLIT_SEED, CoOpDataset, register
from .files import class_folders, left_out, list_images
from .sampling import Item, Split, split_all

# what people call the folders of a split, in any case; ours are train, test and val
SPLIT_NAMES = ("train", "test", "val", "valid", "validation")


class ClassFolders(CoOpDataset):
    """One folder of images per class; without CoOp's file split 50, 20, 30 % per class."""

    class_names: dict[str, str] = {}  # class names that differ from their folder
    ignored: tuple[str, ...] = ()  # folders that are not classes

    def make_split(self) -> Split:
        classes = self.classes_in(self.image_dir)
        if not classes or self.n_classes not in (0, len(classes)):
            raise UserError(
                f"data set {self.name} is incomplete: '{self.image_dir}' has {len(classes)} class "
                f"folders, expected {self.n_classes or 'some'}; {self.advice()}"
            )
        return split_all(self.list_classes(self.image_dir, classes), random.Random(SPLIT_SEED))

    def classes_in(self, folder: Path) -> list[str]:
        """Return the names of the class folders in ``folder``, sorted."""
        return [name for name in class_folders(folder) if name not in self.ignored]

    def list_classes(self, folder: Path, classes: list[str]) -> list[Item]:
        """List ``folder/<class>/...``; a label is the place of the class in ``classes``."""
        items = []
        for label, name in enumerate(classes):
            paths = list_images(folder / name)
            if not paths:
                raise UserError(
                    f"class folder '{folder / name}' has no images; add some or remove the folder"
                )
            classname = self.class_names.get(name, name)
            items += [Item(f"{name}/{path}", label, classname) for path in paths]
        return items


@register
class Folder(ClassFolders):
    """Any images in ``ROOT/FOLDER_NAME``, one folder per class.

    Either ``train/<class>/`` and ``test/<class>/`` (``val/<class>/`` is optional), or the class
    folders themselves, then split 50, 20, 30 % per class. Folder names are class names. The
    prompt is ``DATASET.TEMPLATE``. The folder is read at each start, in sorted order.
    """

    source = (
        "put images into '{dir}/train/<class>/' and '{dir}/test/<class>/', or all of them into "
        "'{dir}/<class>/'"
    )
    ignored = ("split_fewshot",)

    def locate(self, cfg) -> None:
        self.dataset_dir = self.root / getattr(cfg.DATASET, "FOLDER_NAME", "folder")
        if not self.dataset_dir.is_dir():
            raise UserError(
                f"folder '{self.dataset_dir}' does not exist; {self.advice()}; or set DATASET.ROOT "
                "(--root, DATA in the scripts) and DATASET.FOLDER_NAME to where your images are"
            )

    def load_split(self) -> Split:
        found = self.classes_in(self.dataset_dir)
        names = [name for name in found if name.lower() in SPLIT_NAMES]
        parts = {name.lower(): name for name in names}
        whole = {"train", "test"} <= parts.keys()
        known = parts.keys() <= set(Split._fields) and len(parts) == len(names)
        if (whole and not known) or (names and len(names) == len(found) and not whole):
            raise UserError(
                f"folder '{self.dataset_dir}' has {' and '.join(names)}{'' if whole else ' only'}, "
                f"expected train and test, and val if you like; {self.advice()}"
            )
        self._note_left_out()
        return self.read_parts(parts) if whole else self.make_split()

    def _note_left_out(self) -> None:
        """Say how many files are no images by their names."""
        if left := left_out(self.dataset_dir):
            kinds = ", ".join(f"{suffix or 'no suffix'}: {n}" for suffix, n in sorted(left.items()))
            print(f"note: {left.total()} files in '{self.dataset_dir}' are left out ({kinds})")

    def read_parts(self, parts: dict[str, str]) -> Split:
        """List the images of ``train/``, ``test/`` and, where it is there, ``val/``.

        Args:
            parts: part -> its folder, whatever its case.
        """
        classes = self.classes_in(self.dataset_dir / parts["train"])
        split = {part: [] for part in Split._fields}
        for part, name in parts.items():
            folder = self.dataset_dir / name
            present = self.classes_in(folder)
            if unknown := sorted(set(present) - set(classes)):
                raise UserError(
                    f"'{folder}' has the class '{unknown[0]}', which is not in '{parts['train']}'; "
                    "add training images or remove the folder"
                )
            label = {name: classes.index(name) for name in present}
            split[part] = [
                Item(f"{name}/{item.path}", label[present[item.label]], item.classname)
                for item in self.list_classes(folder, present)
            ]
        return Split(**split)
