"""AutoAttack: four attacks in turn, each on the samples that the ones before have left.

Source: Croce & Hein, 2020 (arXiv 2003.01690); the standard version of the authors' code.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import UserError
from .apgd import APGD, TargetedAPGD
from .fab import FAB
from .spec import ADAPTIVE, AttackSpec
from .square import Square

PARTS = {"apgd-ce": APGD, "apgd-t": TargetedAPGD, "fab-t": FAB, "square": Square}
COMPOSED = {"autoattack": tuple(PARTS), "apgd": ("apgd-ce", "apgd-t")}
DLR_CLASSES = 4  # below, the targeted DLR loss is undefined
TARGETED = ("apgd-t", "fab-t")


def parts_of(spec: AttackSpec, classes: int) -> list[AttackSpec]:
    """Return the attacks that ``spec`` stands for: itself, or the parts of a composed one.

    With fewer than 4 classes the targeted parts are left out, with a message.

    Raises:
        UserError: a targeted part alone is asked for and there are too few classes.
    """
    too_few = classes < DLR_CLASSES
    if spec.name == "apgd-t" and too_few:
        raise UserError(
            f"attack 'apgd-t' needs at least {DLR_CLASSES} classes but there are {classes}; "
            "use 'apgd-ce' or 'autoattack'"
        )
    names = COMPOSED.get(spec.name, (spec.name,))
    if spec.name in COMPOSED and too_few:
        left_out = [name for name in names if name in TARGETED]
        print(f"note: {classes} classes are too few for {' and '.join(left_out)}, left out")
        names = [name for name in names if name not in TARGETED]
    if names == (spec.name,):
        return [spec]
    queries = {"square": {"steps": ADAPTIVE["square"]}}
    return [replace(spec, name=name, **queries.get(name, {})) for name in names]


def build_part(spec: AttackSpec, logits, labels):
    """Return the part of AutoAttack that ``spec`` names, with a method ``run(pixels, seeds)``.

    Args:
        logits: images (b, 3, H, W) in [0, 1] -> logits (b, K).
        labels: (B,) int64.
    """
    if spec.name == "square":
        return Square(logits, labels, spec, queries=spec.steps)
    return PARTS[spec.name](logits, labels, spec)
