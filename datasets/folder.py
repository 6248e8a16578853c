"""Folders of classes: the user's own images, and the base of sets with this layout."""

from collections.abc import Iterable
from pathlib import Path

from ..utils.errors import UserError
from .base import CoOpDataset, register
from .files import class_folders, left_out, list_images
from .sampling import Item, Split, split_all

# usual names of the folders of a split, in any case, and ours: train, test and val
SPLIT_NAMES = ("train", "test", "val", "valid", "validation")


class ClassFolders(CoOpDataset):
    """One folder of images per class; without CoOp's file split 50, 20, 30 % per class."""

    class_names: dict[str, str] = {}  # class names that differ from their folder
    ignored: tuple[str, ...] = ()  # folders that are not classes

    def make_split(self) -> Split:
        classes = enumerate(self.classes_in(self.image_dir, self.n_classes))
        named = ((label, name, self.class_names.get(name, name)) for label, name in classes)
        return split_all(self.list_classes("", named))

    def classes_in(self, folder: Path, expected: int = 0) -> list[str]:
        """Return the names of the class folders in ``folder``, sorted; 0 expects any number."""
        classes = [name for name in class_folders(folder) if name not in self.ignored]
        if not classes or expected not in (0, len(classes)):
            raise UserError(
                f"data set {self.name} is incomplete: '{folder}' has {len(classes)} class folders, "
                f"expected {expected or 'some'}; {self.advice()}"
            )
        return classes

    def list_classes(self, place: str, classes: Iterable[tuple[int, str, str]]) -> list[Item]:
        """List the images in ``image_dir/place`` of classes: label, folder and class name."""
        items = []
        for label, folder, classname in classes:
            inside = f"{place}/{folder}" if place else folder
            names = list_images(self.image_dir / inside)
            if not names:
                raise UserError(
                    f"class folder '{self.image_dir / inside}' has no images; "
                    f"{self.advice() if self.n_classes else 'add some or remove the folder'}"
                )
            items += [Item(f"{inside}/{name}", label, classname) for name in names]
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
        if left := left_out(self.dataset_dir):
            kinds = ", ".join(f"{suffix or 'no suffix'}: {n}" for suffix, n in sorted(left.items()))
            print(f"note: {left.total()} files in '{self.dataset_dir}' are left out ({kinds})")
        return self.read_parts(parts) if whole else self.make_split()

    def read_parts(self, parts: dict[str, str]) -> Split:
        """List the images of each part, given by its folder, in upper or lower case."""
        classes = self.classes_in(self.dataset_dir / parts["train"])
        split = {part: [] for part in Split._fields}
        for part, name in parts.items():
            present = self.classes_in(self.dataset_dir / name)
            if unknown := sorted(set(present) - set(classes)):
                raise UserError(
                    f"'{self.dataset_dir / name}' has the class '{unknown[0]}', which is not in "
                    f"'{parts['train']}'; add training images or remove the folder"
                )
            split[part] = self.list_classes(name, [(classes.index(c), c, c) for c in present])
        return Split(**split)
