"""From a spec to a run: AutoAttack's parts, the class of an attack, the precision of gradients.

AutoAttack is four attacks in turn, each on the samples that the ones before left: the standard
version of the code of Croce & Hein, 2020 (arXiv 2003.01690).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..records.threats import REFERENCED
from ..utils.errors import UserError
from .apgd import APGD, TargetedAPGD, UntargetedDLR
from .base import AttackResult
from .fab import FAB
from .family import gradient_attack
from .gradient import objective_for
from .library import LibraryAttack
from .rap import RAP
from .spec import STEPS, AttackSpec
from .square import Square

Model = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [0, 1] -> logits (B, K) or features
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
    """Return the attacks of ``spec``: itself, or the parts of a composed one.

    Parts of a composed attack that need more classes are left out, with a message; UserError if
    such a part is asked for by name.
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


def tower_in(prec: str, features: Model) -> Model:
    """Return an image tower (images to raw features, float32) that computes in ``prec``."""
    if prec == "fp32":
        return features

    def run(images: Tensor) -> Tensor:
        # casts are not kept: one made under no_grad would have no gradient later
        with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
            return features(images).float()  # bfloat16 logits would be steps of an eighth

    return run


def run_attack(
    spec: AttackSpec,
    pixels: Tensor,
    seeds: Sequence[int],
    *,
    forward: Model,  # attacked logits, of rap the surrogate's; features of some
    labels: Tensor | None,  # (B,) int64; None, which only rap takes: the surrogate's own answers
    still_right: Model | None = None,  # where (B,) the tested model is right, for restarts
    exact: Model | None = None,  # float32 logits, which decide if ``forward`` is coarser
    decides: bool = True,  # False where ``forward`` is random, see :class:`LabelledAttack`
) -> AttackResult:
    """Attack images (B, 3, H, W) in [0, 1], a seed each; a composed attack comes in its parts."""
    if spec.name == "rap":
        return RAP(forward, labels, spec).run(pixels, seeds)
    if spec.adaptive or spec.library:
        attack = (LibraryAttack if spec.library else PARTS[spec.name])(forward, labels, spec)
        attack.decides = decides
        return attack.run(pixels, seeds)
    reference = None
    if spec.objective in REFERENCED:
        with torch.no_grad():
            reference = forward(pixels)
    loss = objective_for(spec, forward, labels=labels, reference=reference, exact=exact)
    return gradient_attack(loss, spec).run(pixels, seeds, still_right)
