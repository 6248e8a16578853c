"""AutoAttack: four attacks in turn, each on the samples that the ones before have left.

Source: Croce & Hein, 2020 (arXiv 2003.01690); the standard version of the authors' code.
"""

from __future__ import annotations

from dataclasses import replace

from ..utils.errors import UserError
from .apgd import APGD, TargetedAPGD, UntargetedDLR
from .fab import FAB
from .spec import STEPS, AttackSpec
from .square import Square

PARTS = {
    "apgd-ce": APGD,
    "apgd-dlr": UntargetedDLR,
    "apgd-t": TargetedAPGD,
    "fab-t": FAB,
    "square": Square,
}
COMPOSED = {
    "autoattack": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "apgd": ("apgd-ce", "apgd-dlr"),
}
# fewest classes of a part: where its loss is defined; fab-t would run below and goes with apgd-t
FEWEST = {"apgd-dlr": 3, "apgd-t": 4, "fab-t": 4}


def parts_of(spec: AttackSpec, classes: int) -> list[AttackSpec]:
    """Return the attacks that ``spec`` stands for: itself, or the parts of a composed one.

    Parts of a composed attack that need more classes are left out, with a message.

    Raises:
        UserError: a part is asked for by name and there are too few classes.
    """
    if spec.name not in COMPOSED:
        if classes < FEWEST.get(spec.name, 0):
            raise UserError(
                f"attack '{spec.name}' needs at least {FEWEST[spec.name]} classes but there are "
                f"{classes}; use 'apgd-ce' or 'autoattack'"
            )
        return [spec]
    names = [name for name in COMPOSED[spec.name] if classes >= FEWEST.get(name, 0)]
    left_out = [name for name in COMPOSED[spec.name] if name not in names]
    if left_out:
        print(f"note: {classes} classes are too few for {' and '.join(left_out)}, left out")
    return [replace(spec, name=name, steps=STEPS.get(name, spec.steps)) for name in names]
