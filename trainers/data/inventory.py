"""What is there of a data set and what is missing, against its split file and `Source`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..datasets import addresses, shapes, sources, splits
from ..datasets import files as image_files
from ..utils import errors

BUILT_IN = "built in: drawn on first use"
UNFETCHED = {  # sets without a source: what they are
    **{cls.dataset_dir: BUILT_IN for cls in (shapes.Shapes, *addresses.subclasses(shapes.Shapes))},
    "folder": "your own images, as <class>/ or as train/<class>/ and test/<class>/",
}


@dataclass
class Finding:
    """One file or folder of a data set."""

    path: Path
    state: str
    missing: bool = False
    piece: object = None  # a `Piece` of datasets/addresses.py; None for a set without a source

    @property
    def absent(self) -> bool:
        """Whether it can be put there without touching anything."""
        return self.missing and not os.path.lexists(self.path)


@dataclass
class Inventory:
    """All findings of one data set."""

    name: str
    folder: Path
    findings: list[Finding]

    @property
    def complete(self) -> bool:
        return not any(finding.missing for finding in self.findings)


def names_in(folder: Path) -> set[str]:
    """Return the names in a folder; empty where it is none."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()


def count_images(folder: Path) -> tuple[int, int]:
    """Return the numbers of folders with images and of images below ``folder``."""
    walk = tqdm(
        os.walk(folder, followlinks=True), f"Looking through {folder.name}", delay=1, leave=False
    )
    counts = [sum(map(image_files.is_image, names)) for _, _, names in walk]
    return sum(map(bool, counts)), sum(counts)


def _split_state(source, path: Path) -> tuple[Finding, object]:
    """Look at CoOp's split file; return the finding and the split, None where it is of no use."""
    if not path.is_file():
        able = "; can be made from the original files" if path.parent.is_dir() else ""
        return Finding(path, f"missing{able}", True), None
    try:
        split = splits.read_split(path)
    except errors.UserError:
        return Finding(path, "damaged: no split file of CoOp's form", True), None
    found, expected = sum(map(len, split)), sum(source.sizes)
    if found < expected:
        return Finding(path, f"lists {found:,} images, CoOp's {expected:,}", True), split
    return Finding(path, f"there, {found:,} images"), split


def _by_split(path: Path, relative: str, image_folder: str, split) -> Finding | None:
    """Hold an image folder against the split file; None where the split names nothing in it."""
    prefix = f"{image_folder}/" if image_folder else ""
    below = f"{relative}/"
    listed = [prefix + item.path for items in split for item in items]
    listed = [name[len(below) :] for name in listed if name.startswith(below)]
    if not listed:
        return None
    if not (missing := image_files.missing_files(str(path), listed)):
        return Finding(path, f"there, {len(listed):,} images")
    state = f"missing {len(missing):,} of {len(listed):,} images, such as {missing[0]}"
    return Finding(path, state, True)


def _by_count(path: Path, folders: int, expected: int) -> Finding:
    found_folders, found = count_images(path)
    if found < expected:
        return Finding(path, f"missing {expected - found:,} of {expected:,} images", True)
    if folders and found_folders < folders:
        return Finding(path, f"missing {folders - found_folders:,} of {folders:,} classes", True)
    return Finding(path, f"there, {found:,} images")


def inspect(source, root: Path) -> Inventory:
    """Look at one data set below ``root``; nothing is written."""
    cls = source.data_class
    folder = root / cls.dataset_dir
    findings, split = [], None
    counts = {name: (classes, images) for name, classes, images in source.folders}
    if not counts:
        counts = {cls.image_folder: (0, sum(source.sizes))}
    for piece in source.all_pieces:
        for relative in piece.makes:
            path = folder / relative
            if source.split and relative == cls.split_file:
                finding, split = _split_state(source, path)
            else:
                finding = _look(path, relative, cls.image_folder, counts, split, piece, root)
            finding.piece = piece
            findings.append(finding)
    return Inventory(source.name, folder, findings)


def _look(path, relative, image_folder, counts, split, piece, root) -> Finding:
    """Look at one file or folder that is not the split file."""
    shared = root / piece.shared / relative
    if not path.exists():
        if piece.shared and shared.is_file():
            return Finding(path, f"that of {piece.shared} serves")
        if piece.annotation and split is not None:
            return Finding(path, "not needed beside the split file")
        only = " (needed only without the split file)" if piece.annotation else ""
        return Finding(path, f"missing{only}", True)
    if not piece.annotation and path.is_dir():
        by_split = _by_split(path, relative, image_folder, split) if split else None
        if by_split:
            return by_split
        if relative in counts:
            return _by_count(path, *counts[relative])
    empty = not (path.stat().st_size if path.is_file() else names_in(path))
    return Finding(path, "empty" if empty else "there", empty)


def inspect_unfetched(name: str, root: Path) -> Inventory:
    """Look at the built-in data set or at the user's own."""
    folder = root / name
    missing = name == "folder" and not any(
        p.is_dir() for p in map(folder.joinpath, names_in(folder))
    )
    state = f"missing: {UNFETCHED[name]}" if missing else UNFETCHED[name]
    return Inventory(name, folder, [Finding(folder, state, missing)])


def look_at(name: str, root: Path) -> Inventory:
    """Look at the data set of that full name."""
    if name in UNFETCHED:
        return inspect_unfetched(name, root)
    return inspect(sources.SOURCES[name], root)
