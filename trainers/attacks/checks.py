"""Self-checks of an attack: what it did, and in words what looks wrong with it.

A model may look robust because its gradient is useless. :func:`probe` asks the model itself, with
about 30 forwards of at most 32 images; :func:`compare` holds the attacks against one another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import torch
from torch import Tensor

from ..losses import margin
from .base import AttackResult
from .dispatch import COMPOSED
from .family import gradient_attack
from .geometry import length
from .gradient import objective_for
from .spec import AttackSpec

SLACK = {"linf": 1e-6, "l2": 1e-5}  # float32 rounding of x + delta
ZERO_GRAD_SHARE = 0.01
NO_BALL_LEFT = 0.05
LARGE_EPS = 64 / 255  # nothing of this kind survives it
LARGE_STEPS = 20
LARGE_EPS_SHARE = 0.05
STEP_RISES_SHARE = 0.75
BATCH_LOGITS = 0.05  # of logits of order 10; float32 alone gives about 1e-4
RISE = (0.7, 1.4)  # of a small step, over what the gradient promises; honest models: 0.9 to 1.1
RISES = {"rise_small": 0.25 / 255, "rise_step": 1 / 255}  # figure -> its step
GAP = 3  # points between PGD and AutoAttack
LONG = 50  # steps from which PGD is meant to have converged
ALIKE = ("name", "objective", "target", "steps", "restarts", "start", "norm", "drop")
ALIKE += ("kwargs", "defence")  # fields of two attacks that differ in eps alone


@dataclass
class AttackChecks:
    """Running totals over batches; small, JSON-able with ``dataclasses.asdict``, mergeable."""

    n: int = 0
    max_linf: float = 0.0
    in_range: bool = True
    zero_grad: int = 0
    loss_first: float = 0.0
    loss_last: float = 0.0
    max_l2: float = 0.0
    broken: int = 0
    far: dict = field(default_factory=dict)  # distance -> its sum over the broken

    def add(self, result: AttackResult, clean: Tensor | None = None) -> None:
        """Count one batch; with the ``clean`` images, also how far it went in L2."""
        images, reached, broken = result.images, result.reached or {}, result.right
        self.merge(
            AttackChecks(
                n=len(images),
                max_linf=result.max_linf,
                in_range=bool(((images >= 0) & (images <= 1)).all()),
                zero_grad=int(result.zero_grad.sum()),
                loss_first=float(result.loss_first.double().sum()),
                loss_last=float(result.loss_last.double().sum()),
                max_l2=0.0 if clean is None else float(length(images - clean.float(), "l2").amax()),
                broken=int((~broken).sum()) if reached else 0,
                far={k: float(v[~broken].double().sum()) for k, v in reached.items()},
            )
        )

    def merge(self, other: AttackChecks) -> None:
        """Add the totals of another part of the same attack."""
        for name in ("n", "zero_grad", "loss_first", "loss_last", "broken"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("max_linf", "max_l2"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        self.in_range = self.in_range and other.in_range
        self.far = {k: self.far.get(k, 0) + v for k, v in other.far.items()} or self.far

    def summary(self) -> dict:
        """Return ``max_linf`` (in [0, 1]), ``in_range``, ``zero_grad_share``, ``loss_rises``.

        ``loss_rises``: the mean loss at the returned images exceeds the mean loss at the starts,
        or no image was attacked. From attacks without a ball also ``reached``: the mean distances
        ``l0`` (pixels), ``l1``, ``l2`` and ``linf`` of the images that were broken, null if none.
        """
        means = {k: v / self.broken if self.broken else None for k, v in self.far.items()}
        extra = {"reached": means} if means else {}
        extra |= {"max_l2": self.max_l2} if self.max_l2 else {}
        return extra | {
            "max_linf": self.max_linf,
            "in_range": self.in_range,
            "zero_grad_share": self.zero_grad / max(self.n, 1),
            "loss_rises": self.loss_last > self.loss_first or not self.n,
        }


def verify(
    spec: AttackSpec,
    summary: dict,
    clean_acc: float | None = None,
    robust_acc: float | None = None,
) -> list[str]:
    """Judge a summary; return warnings in words, each headed by the check's name.

    Args:
        clean_acc, robust_acc: fractions in [0, 1]; None where the attack scored nothing (a bank).

    Raises:
        RuntimeError: the perturbation leaves the ball or the image leaves [0, 1]. No number made
            with such an attack means anything.
    """
    most = summary.get(f"max_{spec.norm}", 0)
    if spec.eps is not None and not most <= spec.eps + SLACK[spec.norm]:
        linf = spec.norm == "linf"
        far, radius = (f"{255 * v:.6g}/255" if linf else f"{v:.6g}" for v in (most, spec.eps))
        raise RuntimeError(
            f"max_{spec.norm}: {'a pixel' if linf else 'an image'} moved by {far}, outside the "
            f"ball of {radius} in {spec.norm}"
        )
    if not summary["in_range"]:
        raise RuntimeError("in_range: an adversarial image leaves [0, 1]")
    warnings, moves = [], spec.eps is None or spec.eps > 0
    if moves and summary["zero_grad_share"] > ZERO_GRAD_SHARE:
        warnings.append(
            f"zero_grad_share: the gradient is exactly 0 for {summary['zero_grad_share']:.1%} of "
            "the samples (over 1 %): precision too low, or gradients masked"
        )
    if moves and spec.steps > 0 and not summary["loss_rises"]:
        warnings.append("loss_rises: the attack did not raise its own loss; alpha may be too large")
    if spec.alpha and spec.eps and spec.steps and spec.alpha > 2 * spec.eps:
        warnings.append(
            f"step_size: alpha {spec.alpha * 255:g}/255 is more than twice eps "
            f"{spec.eps * 255:g}/255, so that every step jumps across the ball; eps/4 is usual"
        )
    if spec.alpha and spec.eps and spec.steps and spec.alpha * spec.steps < spec.eps * (1 - 1e-6):
        warnings.append(
            f"short_walk: {spec.steps} steps of alpha {spec.alpha * 255:g}/255 cannot cross the "
            f"ball of eps {spec.eps * 255:g}/255, so the attack is weaker than its eps says; use "
            "more steps or a larger alpha"
        )
    if clean_acc is not None and robust_acc is not None and robust_acc > clean_acc:
        warnings.append(
            f"order: robust accuracy {robust_acc:.1%} exceeds clean accuracy {clean_acc:.1%}"
        )
    if spec.eps is None and spec.steps and robust_acc is not None and robust_acc > NO_BALL_LEFT:
        warnings.append(
            f"no_ball: {robust_acc:.1%} are left by an attack that may go as far as it likes, so "
            "it is too weak: more steps or other KWARGS; this figure is no robust accuracy"
        )
    return warnings


# --- what the model answers ----------------------------------------------------------------------


def probe(
    logits: Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor,
    spec: AttackSpec,
    seeds: Sequence[int],
    *,
    exact: bool = True,
) -> dict[str, float]:
    """Return figures on images (B, 3, H, W) in [0, 1] that the model gets right.

    * ``noise_right``: share still right under the attack's random start alone;
    * ``large_eps_right``: share still right under the attack with eps 64/255 and 20 steps;
    * ``step_rises``: share whose margin loss rises by a step of eps/4 along the gradient's sign;
    * ``batch_logits``: largest change of a logit when an image is shown alone;
    * ``rise_small``, ``rise_step``: the median rise of the margin by a step of 0.25/255 and 1/255
      along the gradient's sign, over what the gradient promises; only where ``exact``: the
      gradient is the model's own, not that of a stand-in for a defence.
    """
    start = replace(spec, name="pgd", kwargs={}, start="uniform", restarts=1, drop=True)
    step = replace(start, objective="margin", start="zero", steps=1, alpha=spec.eps / 4, drop=False)
    size = {"norm": "linf", "eps": LARGE_EPS, "alpha": LARGE_EPS / 4, "steps": LARGE_STEPS}
    large = replace(start, objective="margin", **size)
    noise, large, moved = (
        gradient_attack(objective_for(threat, logits, labels=labels), threat).run(pixels, seeds)
        for threat in (replace(start, steps=0), large, step)
    )
    with torch.no_grad():
        together = logits(pixels)
        rises = margin(logits(moved.images), labels) > margin(together, labels)
        alone = torch.cat([logits(x[None]) for x in pixels[:4]])
    chosen = RISES.items() if exact else ()
    return {name: _rise(logits, pixels, labels, size) for name, size in chosen} | {
        "noise_right": noise.right.float().mean().item(),
        "large_eps_right": large.right.float().mean().item(),
        "step_rises": rises.float().mean().item(),
        "batch_logits": (alone - together[:4]).abs().max().item(),
    }


def _rise(logits, pixels: Tensor, labels: Tensor, step: float) -> float:
    """Return the median rise of the margin over its first-order promise; 0 without a gradient."""
    with torch.enable_grad():
        x = pixels.detach().clone().requires_grad_()
        before = margin(logits(x), labels)
        (slope,) = torch.autograd.grad(before.sum(), x)
    move = (pixels + step * slope.sign()).clamp(0, 1) - pixels
    with torch.no_grad():
        ratio = (margin(logits(pixels + move), labels) - before) / (slope * move).flatten(1).sum(1)
    known = ratio[ratio.isfinite()]
    return known.median().item() if len(known) else 0.0


def judge(figures: Mapping[str, float], spec: AttackSpec, attacked_right: float) -> list[str]:
    """Return warnings in words, each headed by the name of its figure.

    Args:
        attacked_right: share of the probed images that are right under the attack itself.
    """
    noise, large = figures["noise_right"], figures["large_eps_right"]
    rises, changes = figures["step_rises"], figures["batch_logits"]
    found = []
    if noise < attacked_right:
        found += [
            f"noise_right: noise of the same eps leaves {noise:.1%} right but the attack "
            f"{attacked_right:.1%}: the attack is weaker than chance"
        ]
    if large > LARGE_EPS_SHARE:
        found += [
            f"large_eps_right: {large:.1%} of the probed images are right under eps 64/255, where "
            "nothing should be: the attack is too weak or gradients are masked"
        ]
    if rises < STEP_RISES_SHARE:
        found += [
            f"step_rises: a step along the gradient raises the loss of only {rises:.1%} of the "
            f"probed images (under {STEP_RISES_SHARE:.0%}): it does not describe the model"
        ]
    for name, size in RISES.items():
        if name in figures and not RISE[0] <= figures[name] <= RISE[1]:
            found += [
                f"{name}: a step of {size * 255:g}/255 raises the margin by {figures[name]:.2g} "
                f"times what the gradient promises (honest models: {RISE[0]} to {RISE[1]}): the "
                "gradient is not that of the model, so gradient attacks on it are too weak"
            ]
    if changes > BATCH_LOGITS:
        found += [
            f"batch_logits: a logit changes by {changes:.3g} when its image is shown alone: the "
            "result depends on the test batch size"
        ]
    return found


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
    for (i, a), (j, b) in product(enumerate(attacks), repeat=2):
        gap, ours = b["correct"] - a["correct"], f"{b['correct']} of {b['n']} are right under"
        if gap <= 0:
            continue
        own = warnings.setdefault(j, [])
        if sizes[i] < sizes[j] and _same(a, b, *ALIKE):
            own.append(
                f"eps_order: {ours} eps {b['eps']} but only {a['correct']} under the smaller "
                f"{a['eps']}: the attack is too weak"
            )
        transfer = a["target"] != "end_to_end" and b["target"] == "end_to_end"
        white_box = b["steps"] > 0 and "unseen" not in b.get("defence", "")
        if transfer and white_box and a["norm"] == b["norm"] and sizes[i] <= sizes[j]:
            own.append(
                f"transfer_order: {ours} this white-box attack but only {a['correct']} under the "
                f"{a['target']} attack of eps {a['eps']}, which saw less: gradients are masked or "
                "the attack is too weak"
            )
        long = b["name"] == "pgd" and b["steps"] >= LONG and 100 * gap > GAP * a["n"]
        if a["name"] in COMPOSED and long and _same(a, b, "target", "norm", "eps", "defence"):
            left = a.get("checks", {}).get("left", {})
            parts = ", ".join(f"{count} after {name}" for name, count in left.items())
            own.append(
                f"autoattack_gap: {ours} this attack but only {a['correct']} under {a['name']}, "
                f"which starts from what the row's attacks have left{parts and f' ({parts})'}: "
                "believe the latter"
            )
    return {j: found for j, found in sorted(warnings.items()) if found}


def _same(a: Mapping, b: Mapping, *fields: str) -> bool:
    return all(a.get(field) == b.get(field) for field in fields)
