"""Folders of images: what is in them, and what is missing."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def is_image(name: str) -> bool:
    """Return True if a file's name is that of an image and is not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def list_images(folder: Path) -> list[str]:
    """Return the image files below ``folder``, sorted, as paths relative to it (with /)."""
    found = []
    for parent, names in _walk(folder):
        inside = "" if parent == str(folder) else f"{Path(parent).relative_to(folder).as_posix()}/"
        found += [inside + name for name in names if is_image(name)]
    return sorted(found)


def left_out(folder: Path) -> Counter:
    """Count the files below ``folder`` that are no images by their names, by suffix."""
    names = (name for _, names in _walk(folder) for name in names)
    return Counter(
        Path(name).suffix.lower() for name in names if not (is_image(name) or name.startswith("."))
    )


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield folders and the files in them; hidden folders and links into a loop are left out."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [
            name
            for name in sorted(folders)
            if not (name.startswith(".") or Path(real).is_relative_to(Path(parent, name).resolve()))
        ]
        yield parent, names


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder``, hidden ones left out, sorted."""
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def missing_files(folder: str, paths: list[str], many: int = 32) -> list[str]:
    """Return those of ``paths``, relative to ``folder``, that are no files."""
    inside: dict[str, list[str]] = {}
    for path in paths:
        inside.setdefault(path.rpartition("/")[0], []).append(path)
    missing = []
    for parent, wanted in inside.items():
        there = set()  # one listing is faster than many stat calls
        if len(wanted) >= many and os.path.isdir(os.path.join(folder, parent)):
            with os.scandir(os.path.join(folder, parent)) as entries:
                there = {entry.name for entry in entries if entry.is_file()}
        missing += [
            path
            for path in wanted
            if path.rpartition("/")[2] not in there
            and not os.path.isfile(os.path.join(folder, path))
        ]
    return missing
