"""Which files of a data set are present or missing, by its split file and its `Source`."""

from dataclasses import dataclass
from pathlib import Path

from ..datasets import COOP, DRAWN, OWN, splits
from ..datasets import files as image_files
from ..datasets.sources import Piece, find_source
from ..utils import errors

BUILT_IN = "built in: drawn on first use"
YOURS = "your own images, as <class>/ or as train/<class>/ and test/<class>/"


@dataclass
class Finding:
    """One file or folder of a data set."""

    path: Path
    state: str
    missing: bool = False
    piece: Piece | None = None  # None for a set without a source


def look_at(name: str, root: Path) -> list[Finding]:
    """Check the data set of that full name in ``root``; nothing is written."""
    if name in DRAWN:
        return [Finding(root / name, BUILT_IN)]
    if name in OWN:
        there = image_files.class_folders(root / name)
        return [Finding(root / name, YOURS if there else f"missing: {YOURS}", not there)]
    cls, source = COOP[name], find_source(COOP[name])
    findings, split, total = [], None, sum(source.sizes)
    for piece in source.pieces:
        for relative in piece.makes:
            path = root / cls.dataset_dir / relative
            if relative == cls.split_file:
                finding, split = _look_at_split(path, total)
            elif path.is_dir() and not piece.annotation:
                prefix = f"{cls.image_folder}/" if cls.image_folder else ""
                names = [prefix + item.path for items in split or () for item in items]
                inside = f"{relative}/"
                listed = [name[len(inside) :] for name in names if name.startswith(inside)]
                finding = _look_at_images(path, listed, piece.classes, piece.images or total)
            else:
                shared = piece.shared and (root / piece.shared / relative).is_file()
                finding = _look_at_file(path, piece, shared, split is not None)
            finding.piece = piece
            findings.append(finding)
    return findings


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


def _look_at_file(path: Path, piece: Piece, shared: bool, by_split: bool) -> Finding:
    """Check a file, an annotation folder, or what is absent."""
    if path.exists():
        empty = not (path.stat().st_size if path.is_file() else any(path.iterdir()))
        return Finding(path, "empty" if empty else "there", empty)
    if shared:
        return Finding(path, f"that of {piece.shared} is used")
    if piece.annotation and by_split:
        return Finding(path, "not needed next to the split file")
    only = " (needed only without the split file)" if piece.annotation else ""
    return Finding(path, f"missing{only}", True)


def _look_at_images(path: Path, listed: list[str], folders: int, expected: int) -> Finding:
    """Look for the listed images of a folder; without a list, count folders and images."""
    if listed:
        missing, expected = image_files.missing_files(str(path), listed), len(listed)
        lacking, example = len(missing), f", such as {missing[0]}" if missing else ""
        found = expected
    else:
        images = image_files.list_images(path)
        found, lacking, example = len(images), expected - len(images), ""
        found_folders = len({name.rpartition("/")[0] for name in images})
        if lacking <= 0 and found_folders < folders:
            state = f"missing {folders - found_folders:,} of {folders:,} classes"
            return Finding(path, state, True)
    if lacking > 0:
        return Finding(path, f"missing {lacking:,} of {expected:,} images{example}", True)
    return Finding(path, f"there, {found:,} images")
