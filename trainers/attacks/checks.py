"""Self-checks of an attack: figures of what it did, and warnings in words.

:func:`verify` judges one attack, :func:`compare` compares the attacks of a test;
``probes.py`` probes the model itself. Counts are reported where chance explains less than 1 in 100.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from torch import Tensor

from ..utils.statistics import unlikely
from .base import AttackResult
from .dispatch import COMPOSED
from .geometry import length
from .spec import AttackSpec

SLACK = {"linf": 1e-6, "l2": 1e-5}  # float32 rounding of x + delta
ZERO_GRAD_SHARE = 0.01
NO_BALL_LEFT = 0.05
ORDER_SHARE = 0.01  # share of samples that a weaker attack may break and a stronger one leave
SQUARE_SHARE = 0.02  # of samples that Square may break after the gradient attacks
GAP_SHARE = 0.05  # between PGD and AutoAttack
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
    again: dict = field(default_factory=dict)  # other answers to the same images -> right

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

    def merge(self, other: "AttackChecks") -> None:
        """Add the totals of another part of the same attack."""
        for name in ("n", "zero_grad", "loss_first", "loss_last", "broken"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("max_linf", "max_l2"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        self.in_range = self.in_range and other.in_range
        for name in ("far", "again"):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, {k: mine.get(k, 0) + v for k, v in theirs.items()} or mine)

    def summary(self) -> dict:
        """Return ``attacked``, ``max_linf``, ``in_range``, ``zero_grad_share``, ``loss_rises``.

        ``loss_rises``: the mean loss at the returned images exceeds the mean loss at the starts,
        or no image was attacked. From attacks without a ball also ``reached``: the mean distances
        ``l0`` (pixels), ``l1``, ``l2`` and ``linf`` of the images that were broken, null if none.
        """
        means = {k: v / self.broken if self.broken else None for k, v in self.far.items()}
        extra = {"reached": means} if means else {}
        extra |= {"max_l2": self.max_l2} if self.max_l2 else {}
        extra |= {"again": self.again} if self.again else {}
        return extra | {
            "attacked": self.n,
            "max_linf": self.max_linf,
            "in_range": self.in_range,
            "zero_grad_share": self.zero_grad / max(self.n, 1),
            "loss_rises": self.loss_last > self.loss_first or not self.n,
        }


def verify(
    spec: AttackSpec, summary: dict, clean_acc: float | None = None, robust_acc: float | None = None
) -> list[str]:
    """Judge a summary; return warnings in words, each headed by the check's name.

    ``clean_acc`` and ``robust_acc`` are in [0, 1], or None where nothing was scored (a bank).
    RuntimeError if the perturbation leaves the ball or the image leaves [0, 1]: such an attack's
    number would be meaningless.
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
    flat, attacked = summary["zero_grad_share"], summary["attacked"]
    if moves and unlikely(round(flat * attacked), attacked, ZERO_GRAD_SHARE):
        warnings.append(
            f"zero_grad_share: the gradient is exactly 0 for {flat:.1%} of {attacked} samples "
            "(over 1 %): precision too low, or gradients masked"
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
            f"ball of eps {spec.eps * 255:g}/255, so it is weaker than its eps suggests; use "
            "more steps or a larger alpha"
        )
    if clean_acc is not None and robust_acc is not None and robust_acc > clean_acc:
        warnings.append(
            f"order: robust accuracy {robust_acc:.1%} exceeds clean accuracy {clean_acc:.1%}"
        )
    if spec.eps is None and spec.steps and robust_acc is not None and robust_acc > NO_BALL_LEFT:
        warnings.append(
            f"no_ball: {robust_acc:.1%} are left by an attack without a ball, so "
            "it is too weak: more steps or other KWARGS; this figure is no robust accuracy"
        )
    *before, last = summary.get("left", {"": 0}).items()
    if before and last[0] == "square":
        warnings += _square(before[-1][1], last[1])
    return warnings


def _square(before: int, after: int) -> list[str]:
    if not unlikely(before - after, before, SQUARE_SHARE):
        return []
    return [
        f"square_stronger: Square, which uses no gradient, breaks {before - after} of the {before} "
        "samples that the gradient attacks leave: gradients are masked, so trust neither"
    ]


def compare(attacks: Sequence[Mapping]) -> dict[int, list[str]]:
    """Compare a record's attacks, its entries, with one another; return warnings by position."""
    warnings: dict[int, list[str]] = {}
    # an attack without a ball is larger than none: nothing is compared with NaN
    sizes = [float((a["eps"] or "nan").removesuffix("/255")) for a in attacks]
    for (i, a), (j, b) in product(enumerate(attacks), repeat=2):
        gap, ours = b["correct"] - a["correct"], f"{b['correct']} of {b['n']} are right under"
        if gap <= 0:
            continue
        own = warnings.setdefault(j, [])
        more = unlikely(gap, a["n"], ORDER_SHARE)
        if more and sizes[i] < sizes[j] and _same(a, b, *ALIKE):
            own.append(
                f"eps_order: {ours} eps {b['eps']} but only {a['correct']} under the smaller "
                f"{a['eps']}: the attack is too weak"
            )
        transfer = a["target"] != "end_to_end" and b["target"] == "end_to_end"
        white_box = b["steps"] > 0 and "unseen" not in b.get("defence", "")
        if more and transfer and white_box and a["norm"] == b["norm"] and sizes[i] <= sizes[j]:
            own.append(
                f"transfer_order: {ours} this white-box attack but only {a['correct']} under the "
                f"{a['target']} attack of eps {a['eps']}, which saw less: gradients are masked or "
                "the attack is too weak"
            )
        same = _same(a, b, "target", "norm", "eps", "defence")
        if a["name"] == "square" and white_box and same and b["steps"] >= LONG:
            own += _square(b["correct"], a["correct"])
        long = b["name"] == "pgd" and b["steps"] >= LONG and unlikely(gap, a["n"], GAP_SHARE)
        if a["name"] in COMPOSED and long and same:
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
