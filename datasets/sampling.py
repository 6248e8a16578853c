"""Splits and draws over lists of images: few shots, base and new classes, test subsets.

Draws are in the order of CoOp (https://github.com/KaiyangZhou/CoOp, ``datasets/oxford_pets.py``,
``datasets/dtd.py``), so that the same seed selects the same images as there.
"""

import itertools
import math
import random
from typing import NamedTuple

from ..utils.errors import UserError

SPLIT_SEED = 1  # of splits made here, independent of the run's seed


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


def draw_shots(train, val, shots: int, seed: int) -> tuple[list, list]:
    """Draw ``shots`` training and at most 4 validation images per class, as CoOp with this seed."""
    rng = random.Random(seed)
    return few_shot(train, shots, rng), few_shot(val, min(shots, 4), rng)


def shortage(train, shots: int) -> str:
    """Return the advice on classes with fewer training images than shots; "" if there are none."""
    short = [group for group in by_label(train).values() if len(group) < shots]
    if not short:
        return ""
    group = min(short, key=len)
    others = f" (and {len(short) - 1} more classes too few)" if len(short) > 1 else ""
    return (
        f"class '{group[0].classname}' has {len(group)} training images{others}, fewer than "
        f"the {shots} shots asked for; ask for at most {len(group)} shots, add images, or set "
        "DATASET.FEWER_SHOTS True to train on what there is, as CoOp does"
    )


def subsample_classes(split: Split, which: str) -> Split:
    """Keep all classes, the first ceil(n / 2) (base) or the rest (new), with labels from 0."""
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


def split_trainval(trainval, test: list) -> Split:
    """Take 20 % of each class of ``trainval`` for validation, as CoOp does."""
    val, train = _divide(trainval, 0.2)
    return Split(train, val, test)


def split_all(items) -> Split:
    """Divide each class into training, validation and test images: CoOp's 50, 20 and 30 %."""
    return Split(*_divide(items, 0.5, 0.2))


def _divide(items, *shares: float) -> list[list]:
    """Shuffle each class and deal it out by ``shares``; a last part takes the rest."""
    parts, rng = [[] for _ in range(len(shares) + 1)], random.Random(SPLIT_SEED)
    for group in by_label(items).values():
        counts = [round(len(group) * share) for share in shares]
        counts.append(len(group) - sum(counts))
        if min(counts) <= 0:
            raise UserError(
                f"class '{group[0].classname}' has {len(group)} images, too few to be split into "
                f"parts; at least {len(counts) + 1} are needed"
            )
        rng.shuffle(group)
        for part, end, count in zip(parts, itertools.accumulate(counts), counts, strict=True):
            part += group[end - count : end]
    return parts
