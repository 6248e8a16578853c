"""Auto-PGD: projected gradient ascent with momentum that chooses its own step size.

The step size starts at 2 eps and is halved, sample by sample, at checkpoints where the loss rose
too seldom; the sample then goes on from its best iterate. Two losses, as in AutoAttack:
:class:`APGD` ascends the cross-entropy, :class:`TargetedAPGD` the targeted DLR loss.

Source: Croce & Hein, 2020 (arXiv 2003.01690), section 3 and algorithm 1; what the paper leaves
open is done as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import losses
from ..errors import UserError
from .gradient import AttackResult, NotFinite, _mix, check_pixels
from .spec import AttackSpec

MOMENTUM = 0.75  # share of the new step; the rest repeats the last move
RHO = 0.75  # a loss that rose in no more than this share of the steps calls for smaller ones
FIRST, SHORTEST, SHRINK = 0.22, 0.06, 0.03  # intervals between checkpoints, in shares of all steps
MAX_TARGETS = 9  # wrong classes aimed at, one run each


def checkpoints(steps: int) -> dict[int, int]:
    """Return {steps taken: steps since the checkpoint before}."""
    length, shortest, shrink = (max(int(share * steps), 1) for share in (FIRST, SHORTEST, SHRINK))
    found, taken = {}, length
    while taken <= steps:
        found[taken] = length
        length = max(length - shrink, shortest)
        taken += length
    return found


@dataclass
class _Samples:
    """The samples of a run that are not broken yet, row by row."""

    rows: Tensor  # (b,) their places in the run's batch
    clean: Tensor  # (b, 3, H, W), as the next five
    images: Tensor
    before: Tensor  # the iterate before ``images``
    grad: Tensor
    best: Tensor  # the iterate of highest loss
    best_grad: Tensor
    best_loss: Tensor  # (b,), as the next four
    loss: Tensor  # at the last iterate
    rises: Tensor  # steps since the last checkpoint that raised the loss
    reviewed_loss: Tensor  # best_loss at the last checkpoint
    halved: Tensor  # bool, whether the last checkpoint halved the step size
    step_size: Tensor  # (b, 1, 1, 1)

    @classmethod
    def at(cls, clean: Tensor, images: Tensor, step_size: float) -> _Samples:
        """Begin at ``images``. As in the authors' code, a first loss above 0 counts as a rise."""
        per_sample, per_pixel = clean.new_zeros(len(clean)), torch.zeros_like(clean)
        rows = torch.arange(len(clean), device=clean.device)
        lowest = per_sample - torch.inf
        return cls(
            rows, clean, images, images, per_pixel, images, per_pixel,
            best_loss=lowest, loss=per_sample, rises=per_sample, reviewed_loss=lowest,
            halved=torch.ones_like(rows, dtype=torch.bool),
            step_size=torch.full_like(clean[:, :1, :1, :1], step_size),
        )  # fmt: skip

    def keep(self, chosen: Tensor) -> _Samples:
        """Return the samples where ``chosen`` (b,) is True."""
        return _Samples(**{name: value[chosen] for name, value in vars(self).items()})

    def move(self, project: Callable, direction: Tensor, momentum: float) -> None:
        """Take a step, part of which repeats the last move."""
        step = project(self.clean, self.images + self.step_size * direction)
        mixed = self.images + momentum * (step - self.images)
        mixed = mixed + (1 - momentum) * (self.images - self.before)
        self.before, self.images = self.images, project(self.clean, mixed)

    def note(self, loss: Tensor, grad: Tensor, counts: bool) -> None:
        """Remember the loss (b,) and its gradient at ``images``, as those of a step or a start."""
        if counts:
            self.rises, self.loss = self.rises + (loss > self.loss), loss
        better = loss > self.best_loss
        self.best_loss, self.grad = torch.where(better, loss, self.best_loss), grad
        better = better[:, None, None, None]
        self.best = torch.where(better, self.images, self.best)
        self.best_grad = torch.where(better, grad, self.best_grad)

    def review(self, steps: int) -> None:
        """Halve the step size of samples that gained little in ``steps`` steps, and go back."""
        poor = self.rises <= RHO * steps
        poor |= ~self.halved & (self.best_loss <= self.reviewed_loss)
        self.halved, self.reviewed_loss = poor, self.best_loss
        self.rises = torch.zeros_like(self.rises)
        poor = poor[:, None, None, None]
        self.step_size = torch.where(poor, self.step_size / 2, self.step_size)
        self.images = torch.where(poor, self.best, self.images)
        self.grad = torch.where(poor, self.best_grad, self.grad)


class APGD:
    """Auto-PGD on the cross-entropy.

    A sample stops at the first image that the model gets wrong, which is returned; one that is
    wrong at the clean image is returned as it came; one that never breaks is returned where its
    loss was highest. Randomness comes from the sample's own seed and samples never meet: neither
    the batch size nor the order matters, nor that broken samples are left out of later forwards.
    No parameter, gradient or mode of the model is touched.

    Args:
        logits: images (b, 3, H, W) in [0, 1] -> logits (b, K); called with any part of the batch.
        labels: (B,) int64, those of the images given to :meth:`run`.
        spec: of it ``eps``, ``norm``, ``steps`` and ``restarts`` are used.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor], labels: Tensor, spec: AttackSpec):
        self.logits, self.labels, self.spec = logits, labels, spec

    # --- what the targeted version replaces ------------------------------------------------------

    def aims(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the classes (T, B) that the T runs aim at; here the label, to get away from."""
        return labels.expand(self.spec.restarts, -1)

    def loss(self, logits: Tensor, labels: Tensor, aims: Tensor) -> Tensor:
        """Return the ascended loss (b,)."""
        return losses.cross_entropy(logits, labels)

    # --- the attack ------------------------------------------------------------------------------

    def run(self, pixels: Tensor, seeds: Sequence[int]) -> AttackResult:
        """Attack a batch of images (B, 3, H, W) in [0, 1], each with a seed of its own.

        In the result, ``right`` is False where the sample is broken and ``loss_first`` is the loss
        at the clean image.

        Raises:
            UserError: pixels outside [0, 1] or NaN, or too few classes for the loss.
            NotFinite: the loss or its gradient is not finite.
            RuntimeError: the logits ignore the images.
        """
        check_pixels(pixels)
        if not len(pixels) == len(seeds) == len(self.labels):
            counts = f"{len(pixels)} images, {len(seeds)} seeds and {len(self.labels)} labels"
            raise ValueError(f"{counts}: one each is needed")
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(pixels.device.type, enabled=False),
        ):
            clean = pixels.detach().clone().float().clamp(0, 1)
            labels = self.labels.clone().to(clean.device)
            with torch.no_grad():
                logits = self.logits(clean)  # (B, K)
            aims = self.aims(logits, labels)
            loss, right = _finite(self.loss(logits, labels, aims[0])), logits.argmax(1) == labels
            kept = AttackResult(
                clean.clone(), 0.0, torch.zeros_like(right), loss, loss.clone(), right
            )
            for turn, aim in enumerate(aims):
                left = kept.right.nonzero().flatten()  # (b,)
                if len(left):
                    own = [_mix(int(seeds[i]), turn) for i in left.tolist()]
                    found = self._once(clean[left], labels[left], aim[left], own)
                    found.loss_first = self.loss(logits[left], labels[left], aim[left])
                    kept.zero_grad[left] |= found.zero_grad
                    worse = ~found.right | (found.loss_last > kept.loss_last[left])
                    for name in ("images", "loss_first", "loss_last", "right"):
                        getattr(kept, name)[left[worse]] = getattr(found, name)[worse]
        if len(clean):
            kept.max_linf = float((kept.images - clean).abs().max())
        return kept

    def _once(self, clean: Tensor, labels: Tensor, aims: Tensor, seeds: list[int]) -> AttackResult:
        """Attack from one random start."""
        nothing = torch.zeros(len(clean), device=clean.device)
        found = AttackResult(
            clean.clone(), 0.0, nothing.bool(), nothing, nothing.clone(), ~nothing.bool()
        )
        samples = _Samples.at(
            clean, self.project(clean, self.start(clean, seeds)), 2 * self.spec.eps
        )
        reviews = checkpoints(self.spec.steps)
        for step in range(self.spec.steps + 1):
            if step:
                direction = self.direction(samples.grad)
                samples.move(self.project, direction, MOMENTUM if step > 1 else 1)
            rows = samples.rows
            loss, grad, right = self._look(samples.images, labels[rows], aims[rows])
            found.zero_grad[rows] |= grad.flatten(1).abs().amax(dim=1) == 0
            samples.note(loss, grad, counts=step > 0)
            if not right.all():
                broken = rows[~right]
                found.images[broken] = samples.images[~right]
                found.loss_last[broken], found.right[broken] = loss[~right], False
                samples = samples.keep(right)
                if right.sum() == 0:
                    return found
            if step in reviews:
                samples.review(reviews[step])
        found.images[samples.rows] = samples.best
        found.loss_last[samples.rows] = samples.best_loss
        return found

    def _look(self, images: Tensor, labels: Tensor, aims: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss (b,), its gradient (b, 3, H, W) and where the model is right (b,)."""
        images = images.detach().requires_grad_()
        logits = self.logits(images)
        loss = _finite(self.loss(logits, labels, aims))
        if not loss.requires_grad:
            raise RuntimeError("the attack's loss does not depend on the images")
        (grad,) = torch.autograd.grad(loss.sum(), images)
        if not torch.isfinite(grad).all():
            raise NotFinite("the attack's gradient is not finite; compute in fp32")
        return loss.detach(), grad, logits.argmax(1) == labels

    # --- the ball --------------------------------------------------------------------------------

    def start(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return noise scaled to the ball's edge: its largest pixel, or its length, is eps."""
        generator, linf = torch.Generator(), self.spec.norm == "linf"
        draw = torch.rand if linf else torch.randn
        noise = torch.stack(
            [draw(clean.shape[1:], generator=generator.manual_seed(s)) for s in seeds]
        ).to(clean)
        noise = 2 * noise - 1 if linf else noise
        return clean + self.spec.eps * noise / _length(noise, self.spec.norm)

    def direction(self, grad: Tensor) -> Tensor:
        """Return the step of unit length that raises the loss the most."""
        return grad.sign() if self.spec.norm == "linf" else grad / _length(grad, "l2")

    def project(self, clean: Tensor, images: Tensor) -> Tensor:
        """Return ``images`` moved into the ball around ``clean`` and into [0, 1]."""
        eps = self.spec.eps
        if self.spec.norm == "linf":
            return images.clamp(clean - eps, clean + eps).clamp(0, 1)
        move = images - clean
        return (clean + move * (eps / _length(move, "l2")).clamp(max=1)).clamp(0, 1)


class TargetedAPGD(APGD):
    """Auto-PGD on the targeted DLR loss, towards each of the likeliest wrong classes in turn.

    These are the 9 wrong classes of highest logit at the clean image, or all K - 1 where there
    are fewer; restarts go through them again. A sample counts as broken wherever it is
    misclassified, as the aimed-at class or another.
    """

    def aims(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the classes (T, B) aimed at.

        Raises:
            UserError: fewer than 4 classes, for which the loss is undefined.
        """
        classes = logits.shape[1]
        if classes < 4:
            raise UserError(
                f"the targeted DLR loss needs at least 4 classes but the model has {classes}; "
                "attack it with APGD on the cross-entropy"
            )
        wrong = logits.scatter(1, labels[:, None], -torch.inf)
        likeliest = wrong.topk(min(MAX_TARGETS, classes - 1), dim=1).indices  # (B, T)
        return likeliest.t().repeat(self.spec.restarts, 1)

    def loss(self, logits: Tensor, labels: Tensor, aims: Tensor) -> Tensor:
        """Return the targeted DLR loss (b,)."""
        return losses.dlr_targeted(logits, labels, aims)


def _length(move: Tensor, norm: str) -> Tensor:
    """Length (B, 1, 1, 1) of images' changes, never 0."""
    order = torch.inf if norm == "linf" else 2
    return torch.linalg.vector_norm(move, order, dim=(1, 2, 3), keepdim=True) + 1e-12


def _finite(loss: Tensor) -> Tensor:
    if not torch.isfinite(loss).all():
        raise NotFinite("the attack's loss is not finite; compute in fp32")
    return loss
