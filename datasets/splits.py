"""Split files and few-shot files: reading, digests, checks."""

from pathlib import Path

from ..utils import io
from ..utils.errors import UserError
from .sampling import Item, Split


def to_items(rows) -> list[Item]:
    """Turn rows [path, label, class name] into items; ValueError or TypeError for other rows."""
    items = [Item(path, label, name) for path, label, name in rows]
    for item in items:
        if tuple(map(type, item[:3])) != (str, int, str):
            raise ValueError(f"{list(item)!r:.80} is no row of path, label and class name")
    return items


def read_split(path) -> Split:
    """Read a split file of CoOp's form: train, val and test, each [path, label, class name]s."""
    stored = io.read_json(path)
    try:
        return Split(*(to_items(stored[part]) for part in Split._fields))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"'{path}' is not a split file (expected train, val and test with rows of path, label "
            "and class name); fetch it again, or delete it to have the split made"
        ) from error


def read_shots(path: Path, key: dict) -> tuple[list, list] | None:
    """Read a few-shot file, or return None where it is absent, damaged or of another split."""
    try:
        stored = io.read_json(path)
        if any(stored[name] != value for name, value in key.items()):
            return None
        train, val = to_items(stored["train"]), to_items(stored["val"])
        return (train, val) if stored["checksum"] == io.json_digest([train, val]) else None
    except (UserError, KeyError, TypeError, ValueError):
        return None


def check_labels(split: Split, name: str) -> None:
    """Check that labels count from 0, each with one class name, and that nothing is empty."""
    for part in ("train", "test"):
        if not getattr(split, part):
            raise UserError(f"data set {name} has no {part} images; check its split and folders")
    names = {item.label: item.classname for item in split.train}
    if sorted(names) != list(range(len(names))):
        raise UserError(
            f"data set {name} has training labels {sorted(names)}, expected 0 to "
            f"{len(names) - 1}; check its split file"
        )
    for items in split:
        for item in items:
            if names.get(item.label) != item.classname:
                raise UserError(
                    f"data set {name}: '{item.path}' has label {item.label} and class "
                    f"'{item.classname}', which no training image has; check its split file"
                )
