"""Questions put to the model itself after an attack, on a few images: could the gradient mislead?

A model may look robust because its gradient is useless. These probes cost about 30 forwards of at
most 32 images and tell such a model from a robust one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..losses import margin
from .autoattack import COMPOSED
from .family import gradient_attack
from .gradient import objective_for
from .spec import AttackSpec

LARGE_EPS = 64 / 255  # nothing of this kind survives it
LARGE_STEPS = 20
LARGE_EPS_SHARE = 0.05
STEP_RISES_SHARE = 0.75
BATCH_LOGITS = 0.05  # of logits of order 10; float32 alone gives about 1e-4
GAP = 3  # points between PGD and AutoAttack
LONG = 50  # steps from which PGD is meant to have converged


def probe(
    logits: Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor,
    spec: AttackSpec,
    seeds: Sequence[int],
) -> dict[str, float]:
    """Return figures on images (B, 3, H, W) in [0, 1] that the model gets right.

    * ``noise_right``: share still right under the attack's random start alone;
    * ``large_eps_right``: share still right under the attack with eps 64/255 and 20 steps;
    * ``step_rises``: share whose margin loss rises by a step of eps/4 along the gradient's sign;
    * ``batch_logits``: largest change of a logit when an image is shown alone.
    """
    start = replace(spec, name="pgd", kwargs={}, start="uniform", restarts=1, drop=True)
    noise = replace(start, steps=0)
    large = replace(
        start,
        norm="linf",
        eps=LARGE_EPS,
        alpha=LARGE_EPS / 4,
        steps=LARGE_STEPS,
        objective="margin",
    )

    def run(threat):
        loss = objective_for(threat, logits, labels=labels)
        return gradient_attack(loss, threat).run(pixels, seeds)

    right = {
        name: run(threat).right.float().mean().item()
        for name, threat in (("noise_right", noise), ("large_eps_right", large))
    }
    moved = run(
        replace(start, objective="margin", start="zero", steps=1, drop=False, alpha=spec.eps / 4)
    )
    with torch.no_grad():
        together = logits(pixels)
        rises = margin(logits(moved.images), labels) > margin(together, labels)
        alone = torch.cat([logits(x[None]) for x in pixels[:4]])
    return {
        **right,
        "step_rises": rises.float().mean().item(),
        "batch_logits": (alone - together[:4]).abs().max().item(),
    }


def judge(figures: Mapping[str, float], spec: AttackSpec, attacked_right: float) -> list[str]:
    """Return warnings in words, each headed by the name of its figure.

    Args:
        attacked_right: share of the probed images that are right under the attack itself.
    """
    noise, large = figures["noise_right"], figures["large_eps_right"]
    warnings = []
    if noise < attacked_right:
        warnings.append(
            f"noise_right: noise of the same eps leaves {noise:.1%} right but the attack "
            f"{attacked_right:.1%}: the attack is weaker than chance"
        )
    if large > LARGE_EPS_SHARE:
        warnings.append(
            f"large_eps_right: {large:.1%} of the probed images are right under eps 64/255, where "
            "nothing should be: the attack is too weak or gradients are masked"
        )
    if figures["step_rises"] < STEP_RISES_SHARE:
        warnings.append(
            f"step_rises: a step along the gradient raises the loss of only "
            f"{figures['step_rises']:.1%} of the probed images (under "
            f"{STEP_RISES_SHARE:.0%}): the gradient does not describe the model"
        )
    if figures["batch_logits"] > BATCH_LOGITS:
        warnings.append(
            f"batch_logits: a logit changes by {figures['batch_logits']:.3g} when its image is "
            "shown alone: the result depends on the test batch size"
        )
    return warnings


def compare(attacks: Sequence[Mapping]) -> dict[int, list[str]]:
    """Hold the attacks of one record against one another.

    Args:
        attacks: entries of a record, with ``eps`` such as ``"4/255"``.

    Returns:
        warnings for the attacks by their positions in the list.
    """
    warnings: dict[int, list[str]] = {}
    # an attack without a ball is larger than none: nothing is compared with NaN
    sizes = [float((a["eps"] or "nan").removesuffix("/255")) for a in attacks]
    for i, a in enumerate(attacks):
        for j, b in enumerate(attacks):
            if sizes[i] < sizes[j] and _like(a, b) and a["correct"] < b["correct"]:
                warnings.setdefault(j, []).append(
                    f"eps_order: {b['correct']} of {b['n']} are right under eps {b['eps']} but "
                    f"only {a['correct']} under the smaller {a['eps']}: the attack is too weak"
                )
            transfer = a["target"] != "end_to_end" and b["target"] == "end_to_end"
            same = a["norm"] == b["norm"] and sizes[i] <= sizes[j] and b["steps"] > 0
            same = same and "unseen" not in b.get("defence", "")  # else it is no white box
            if transfer and same and a["correct"] < b["correct"]:
                warnings.setdefault(j, []).append(
                    f"transfer_order: {b['correct']} of {b['n']} are right under this white-box "
                    f"attack but only {a['correct']} under the {a['target']} attack of eps "
                    f"{a['eps']}, which saw less: gradients are masked or the attack is too weak"
                )
            gap = 100 * (b["correct"] - a["correct"]) / a["n"]
            if a["name"] in COMPOSED and gap > GAP and _rivals(a, b):
                left = a.get("checks", {}).get("left", {})
                warnings.setdefault(j, []).append(
                    f"autoattack_gap: {b['correct']} of {b['n']} are right under this attack but "
                    f"only {a['correct']} under {a['name']}, which starts from what the row's "
                    f"attacks have left{_parts(left)}: believe the latter"
                )
    return warnings


def _rivals(a: Mapping, b: Mapping) -> bool:
    """Whether ``b`` is a long PGD under the same threat as ``a``, which is composed."""
    shared = ("target", "norm", "eps", "defence")
    long = b["name"] == "pgd" and b["steps"] >= LONG
    return long and all(a.get(field) == b.get(field) for field in shared)


def _parts(left: Mapping[str, int]) -> str:
    told = ", ".join(f"{count} after {name}" for name, count in left.items())
    return f" ({told})" if told else ""


def _like(a: Mapping, b: Mapping) -> bool:
    fields = ("name", "objective", "target", "steps", "restarts", "start", "norm", "drop")
    return all(a.get(field) == b.get(field) for field in (*fields, "kwargs", "defence"))
