"""Which files of a data set are present or missing, by its split file and its `Source`."""

from dataclasses import dataclass
from pathlib import Path

from ..datasets import COOP, DRAWN, OWN, splits
from ..datasets import files as image_files
from ..datasets.sources import Piece, find_source
from ..utils import errors

BUILT_IN = "built in: drawn on first use"
WITHOUT_SOURCE = dict.fromkeys(DRAWN, BUILT_IN) | dict.fromkeys(
    OWN, "your own images, as <class>/ or as train/<class>/ and test/<class>/"
)


@dataclass
class Finding:
    """One file or folder of a data set."""

    path: Path
    state: str
    missing: bool = False
    piece: Piece | None = None  # None for a set without a source


@dataclass
class Inventory:
    name: str
    folder: Path
    findings: list[Finding]

    @property
    def complete(self) -> bool:
        return not any(finding.missing for finding in self.findings)


def look_at(name: str, root: Path) -> Inventory:
    """Check the data set of that full name in ``root``; nothing is written."""
    if name in WITHOUT_SOURCE:
        missing = name in OWN and not image_files.class_folders(root / name)
        state = f"missing: {WITHOUT_SOURCE[name]}" if missing else WITHOUT_SOURCE[name]
        return Inventory(name, root / name, [Finding(root / name, state, missing)])
    cls, source = COOP[name], find_source(COOP[name])
    folder, findings, split = root / cls.dataset_dir, [], None
    for piece in source.pieces:
        for relative in piece.makes:
            path = folder / relative
            if relative == cls.split_file:
                finding, split = _look_at_split(path, sum(source.sizes))
            else:
                finding = (
                    _look_for(path, piece, split, root / piece.shared / relative)
                    or _by_split(path, f"{relative}/", cls.image_folder, split)
                    or _by_count(path, piece.classes, piece.images or sum(source.sizes))
                )
            finding.piece = piece
            findings.append(finding)
    return Inventory(name, folder, findings)


def _look_at_split(path: Path, expected: int) -> tuple[Finding, splits.Split | None]:
    """Check CoOp's split file; return the finding and the split, None if it cannot be used."""
    if not path.is_file():
        able = "; can be made from the original files" if path.parent.is_dir() else ""
        return Finding(path, f"missing{able}", True), None
    try:
        split = splits.read_split(path)
    except errors.UserError:
        return Finding(path, "damaged: not a split file of CoOp's form", True), None
    found = sum(map(len, split))
    if found < expected:
        return Finding(path, f"lists {found:,} images, CoOp's {expected:,}", True), split
    return Finding(path, f"there, {found:,} images"), split


def _look_for(path: Path, piece: Piece, split, shared: Path) -> Finding | None:
    """Check a file or folder that is absent, empty or without images to count."""
    if not path.exists():
        if piece.shared and shared.is_file():
            return Finding(path, f"that of {piece.shared} is used")
        if piece.annotation and split is not None:
            return Finding(path, "not needed next to the split file")
        only = " (needed only without the split file)" if piece.annotation else ""
        return Finding(path, f"missing{only}", True)
    if piece.annotation or path.is_file():
        empty = not (path.stat().st_size if path.is_file() else any(path.iterdir()))
        return Finding(path, "empty" if empty else "there", empty)
    return None


def _by_split(path: Path, inside: str, image_folder: str, split) -> Finding | None:
    """Compare an image folder with the split file; None where the split names nothing in it."""
    prefix = f"{image_folder}/" if image_folder else ""
    listed = [prefix + item.path for items in split or () for item in items]
    listed = [name[len(inside) :] for name in listed if name.startswith(inside)]
    if not listed:
        return None
    if not (missing := image_files.missing_files(str(path), listed)):
        return Finding(path, f"there, {len(listed):,} images")
    state = f"missing {len(missing):,} of {len(listed):,} images, such as {missing[0]}"
    return Finding(path, state, True)


def _by_count(path: Path, folders: int, expected: int) -> Finding:
    """Count the folders with images and the images in an image folder."""
    images = image_files.list_images(path)
    found, found_folders = len(images), len({name.rpartition("/")[0] for name in images})
    if found < expected:
        return Finding(path, f"missing {expected - found:,} of {expected:,} images", True)
    if found_folders < folders:
        return Finding(path, f"missing {folders - found_folders:,} of {folders:,} classes", True)
    return Finding(path, f"there, {found:,} images")
