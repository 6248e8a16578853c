"""Splits and draws over lists of images: few shots, base and new classes, test subsets.

Every function draws from the ``random.Random`` it is given and in the order of CoOp
(https://github.com/KaiyangZhou/CoOp, ``datasets/oxford_pets.py``, ``datasets/dtd.py``), so
that the same seed selects the same images as there. Only ``label`` of an item is looked at
where not stated otherwise: lists of Dassl's ``Datum`` work as well as lists of `Item`.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

from ..utils.errors import UserError


class Item(NamedTuple):
    """One image of a split: path below the image folder (with /), 0-based label, class name."""

    path: str
    label: int
    classname: str


class Split(NamedTuple):
    """Training, validation and test images."""

    train: list
    val: list
    test: list


def by_label(items) -> dict[int, list]:
    """Group items by label, labels in the order of their first occurrence."""
    groups: dict[int, list] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups


def few_shot(items, shots: int, rng: random.Random) -> list:
    """Draw ``shots`` items of each class without replacement.

    A class with fewer items gives what it has, without a draw. Dassl's
    ``DatasetBase.generate_fewshot_dataset`` after ``random.seed(s)`` returns the same.
    """
    drawn = []
    for group in by_label(items).values():
        drawn += rng.sample(group, shots) if len(group) >= shots else group
    return drawn


def draw_shots(train, val, shots: int, seed: int, *, strict: bool = True) -> tuple[list, list]:
    """Draw the few-shot training and validation images as CoOp does with this seed.

    Args:
        train, val: items with ``label`` and ``classname``.
        shots: images per class; at most 4 of them go into validation.
        strict: refuse classes that are too small; else they give what they have.

    Raises:
        UserError: a class has fewer training images than ``shots``.
    """
    short = {y: group for y, group in by_label(train).items() if len(group) < shots}
    if short and strict:
        group = min(short.values(), key=len)
        others = f" (and {len(short) - 1} more classes too few)" if len(short) > 1 else ""
        raise UserError(
            f"class '{group[0].classname}' has {len(group)} training images{others}, fewer than "
            f"the {shots} shots asked for; ask for at most {len(group)} shots or add images"
        )
    rng = random.Random(seed)
    return few_shot(train, shots, rng), few_shot(val, min(shots, 4), rng)


def subsample_classes(split: Split, which: str) -> Split:
    """Keep all classes, the first half (``base``) or the second half (``new``).

    The first half has ceil(n / 2) classes; labels are counted from 0 again.
    """
    if which not in ("all", "base", "new"):
        raise UserError(f"DATASET.SUBSAMPLE_CLASSES is '{which}', expected all, base or new")
    if which == "all":
        return split
    labels = sorted({item.label for item in split.train})
    half = math.ceil(len(labels) / 2)
    chosen = labels[:half] if which == "base" else labels[half:]
    if not chosen:
        raise UserError("a data set of one class has no new classes; use SUBSAMPLE_CLASSES all")
    relabel = {old: new for new, old in enumerate(chosen)}
    return Split(
        *(
            [item._replace(label=relabel[item.label]) for item in items if item.label in relabel]
            for items in split
        )
    )


def first_by_name(items, n: int) -> list:
    """Return the first ``n`` items in the order of their file names, folders left aside."""
    if n < 0:
        raise UserError(f"TEST.FIRST is {n}, expected the number of test images or 0 for all")
    return sorted(items, key=lambda item: item.path.rpartition("/")[::-1])[:n]


def split_trainval(items, rng: random.Random, val_share: float = 0.2) -> tuple[list, list]:
    """Divide each class into training and validation images (CoOp: 80 % and 20 %)."""
    train, val = [], []
    for group in by_label(items).values():
        n_val = round(len(group) * val_share)
        _require(n_val > 0, group, 3)
        rng.shuffle(group)
        val += group[:n_val]
        train += group[n_val:]
    return train, val


def split_all(items, rng: random.Random, train_share=0.5, val_share=0.2) -> Split:
    """Divide each class into training, validation and test images (CoOp: 50, 20, 30 %)."""
    train, val, test = [], [], []
    for group in by_label(items).values():
        n_train, n_val = round(len(group) * train_share), round(len(group) * val_share)
        _require(min(n_train, n_val, len(group) - n_train - n_val) > 0, group, 4)
        rng.shuffle(group)
        train += group[:n_train]
        val += group[n_train : n_train + n_val]
        test += group[n_train + n_val :]
    return Split(train, val, test)


def _require(enough: bool, group, least: int) -> None:
    if not enough:
        raise UserError(
            f"class '{group[0].classname}' has {len(group)} images, too few to be split into "
            f"parts; at least {least} are needed"
        )
