"""Auto-PGD: projected gradient ascent with momentum that chooses its own step size.

The step size starts at 2 eps and is halved, sample by sample, at checkpoints where the loss rose
too seldom; the sample then continues from its best iterate. Two losses, as in AutoAttack:
:class:`APGD` ascends the cross-entropy, :class:`TargetedAPGD` the targeted DLR loss.

Source: Croce & Hein, 2020 (arXiv 2003.01690), section 3 and algorithm 1; details that the
paper leaves open follow the authors' code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import losses
from ..utils import progress
from .base import AttackResult, LabelledAttack, likeliest_wrong
from .geometry import into_ball, length

MOMENTUM = 0.75  # share of the new step; the rest repeats the last move
RHO = 0.75  # if the loss rose in no more than this share of the steps, the step size is halved
FIRST, SHORTEST, SHRINK = 0.22, 0.06, 0.03  # intervals between checkpoints, in shares of all steps
TARGETS = 9  # wrong classes aimed at, one run each


def checkpoints(steps: int) -> dict[int, int]:
    """Return {steps taken: steps since the checkpoint before}."""
    interval, shortest, shrink = (max(int(p * steps), 1) for p in (FIRST, SHORTEST, SHRINK))
    found, taken = {}, interval
    while taken <= steps:
        found[taken] = interval
        interval = max(interval - shrink, shortest)
        taken += interval
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
    def at(cls, clean: Tensor, images: Tensor, step_size: float) -> "_Samples":
        """Begin at ``images``. As in the authors' code, a first loss above 0 is a rise."""
        zero, none = clean.new_zeros(len(clean)), torch.zeros_like(clean)
        rows, lowest = torch.arange(len(clean), device=clean.device), zero - torch.inf
        size = torch.full_like(clean[:, :1, :1, :1], step_size)
        walk = rows, clean, images, images, none, images, none
        return cls(*walk, lowest, zero, zero, lowest, rows >= 0, size)

    def keep(self, chosen: Tensor) -> "_Samples":
        """Return the samples where ``chosen`` (b,) is True."""
        return _Samples(**{name: value[chosen] for name, value in vars(self).items()})

    def move(self, eps: float, norm: str, momentum: float) -> None:
        """Take a step up the gradient, part of which repeats the last move."""
        size = length(self.grad, norm).clamp_min(1e-12)
        up = self.grad.sign() if norm == "linf" else self.grad / size
        step = into_ball(self.clean, self.images + self.step_size * up, eps, norm)
        mixed = self.images + momentum * (step - self.images)
        mixed = mixed + (1 - momentum) * (self.images - self.before)
        self.before, self.images = self.images, into_ball(self.clean, mixed, eps, norm)

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


class APGD(LabelledAttack):
    """Auto-PGD on the cross-entropy; of the spec, norm, eps, steps and restarts are used.

    A sample stops at the first image that the model gets wrong, which is returned; one that never
    breaks is returned where its loss was highest. Without ``decides`` it is the last iterate.
    """

    def loss(self, logits: Tensor, labels: Tensor, aims: Tensor) -> Tensor:
        """Return the ascended loss (b,) of a run that aims at the classes ``aims`` (b,)."""
        return losses.cross_entropy(logits, labels)

    def aims(self, logits: Tensor, labels: Tensor, turn: int) -> Tensor:
        """Return the classes (b,) that a run aims at; here the label, to move away from."""
        return labels

    def clean_loss(self, logits: Tensor, labels: Tensor, turn: int) -> Tensor:
        return self.loss(logits, labels, self.aims(logits, labels, turn))

    def search(
        self, clean: Tensor, labels: Tensor, logits: Tensor, seeds: list[int], turn: int
    ) -> AttackResult:
        return self.ascend(clean, labels, self.aims(logits, labels, turn), seeds)

    def ascend(self, clean: Tensor, labels: Tensor, aims: Tensor, seeds: list[int]) -> AttackResult:
        """Attack from one random start; leaves ``loss_first`` 0."""
        eps, norm, steps = self.spec.eps, self.spec.norm, self.spec.steps
        zeros = torch.zeros(len(clean), device=clean.device)
        found = AttackResult.untouched(clean, zeros, zeros == 0)
        images = into_ball(clean, self.start(clean, seeds), eps, norm)
        samples, reviews = _Samples.at(clean, images, 2 * eps), checkpoints(steps)
        for step in progress.steps(steps + 1):
            if step:
                samples.move(eps, norm, MOMENTUM if step > 1 else 1)
            rows = samples.rows
            loss, grad, flat, logits = self.gradient(
                samples.images, lambda x, at=rows: self.loss(x, labels[at], aims[at])
            )
            found.zero_grad[rows] |= flat
            samples.note(loss, grad, counts=step > 0)
            right = self.right(logits, labels[rows])
            if not right.all():
                broken = rows[~right]
                found.images[broken] = samples.images[~right]
                found.loss_last[broken], found.right[broken] = loss[~right], False
                samples = samples.keep(right)
                if not len(samples.rows):
                    return found
            if step in reviews and step < steps:
                samples.review(reviews[step])
        # the highest of random losses would be that of the best draw
        best = (samples.best, samples.best_loss) if self.decides else (samples.images, loss)
        found.images[samples.rows], found.loss_last[samples.rows] = best
        return found

    def start(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return noise scaled to the ball's edge: its largest pixel, or its length, is eps."""
        return clean + self.spec.eps * self.noise(clean, seeds)


class UntargetedDLR(APGD):
    """Auto-PGD on the untargeted DLR loss, which needs 3 classes."""

    def loss(self, logits: Tensor, labels: Tensor, aims: Tensor) -> Tensor:
        return losses.dlr(logits, labels)


class TargetedAPGD(APGD):
    """Auto-PGD on the targeted DLR loss, which needs 4 classes.

    Runs aim at the 9 wrong classes of highest logit at the clean image, or at all K - 1 where
    there are fewer. A sample is broken if it is misclassified as any class.
    """

    def turns(self, classes: int) -> int:
        return self.spec.restarts * min(TARGETS, classes - 1)

    def aims(self, logits: Tensor, labels: Tensor, turn: int) -> Tensor:
        aims = likeliest_wrong(logits, labels, TARGETS)
        return aims[turn % len(aims)]  # restarts go through them again

    def loss(self, logits: Tensor, labels: Tensor, aims: Tensor) -> Tensor:
        return losses.dlr_targeted(logits, labels, aims)
