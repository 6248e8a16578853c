"""The gradient attack loop. Methods differ in four hooks: start, normalize, project, objective.

PGD in the L_inf ball is the default; :mod:`.family` has the others.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import losses
from ..records.threats import LABELLED
from ..utils import progress
from ..utils.seeds import generators
from .base import (
    AttackResult,
    NotFinite,
    another_seed,
    check_finite,
    check_logits,
    drawn,
    gradient_of,
    isolated,
)
from .spec import AttackSpec

LOSSES = {
    "ce": losses.cross_entropy,
    "margin": losses.margin,
    "kl": losses.kl,
    "embedding_kl": losses.embedding_kl,
    "embedding_l2": losses.embedding_l2,
}


def objective_for(
    spec: AttackSpec,
    forward: Callable[[Tensor], Tensor],
    *,
    labels: Tensor | None = None,  # (B,) int64, for ce and margin
    reference: Tensor | None = None,  # clean logits or features, for objectives in REFERENCED
    exact: Callable[[Tensor], Tensor] | None = None,  # see :class:`Labelled`
) -> Callable[[Tensor], Tensor]:
    """Return the per-sample loss that ``spec.objective`` names, as a function of the images.

    ``forward`` turns images (B, 3, H, W) into logits (B, K), for those in FEATURED into raw
    features (B, D).
    """
    loss, labelled = LOSSES[spec.objective], spec.objective in LABELLED
    if (labels if labelled else reference) is None:
        what = "labels" if labelled else "the clean reference"
        raise ValueError(f"objective '{spec.objective}' needs {what}")
    with torch.inference_mode(False):
        # Copies: a tensor made in inference mode cannot take part in a backward pass.
        given = (labels, reference)
        labels, reference = (None if x is None else x.detach().clone() for x in given)
    if not labelled:
        return lambda images: loss(reference, forward(images))
    return Labelled(forward, labels, loss, exact)


class Labelled:
    """A loss of logits and labels, which also returns where the model is right.

    ``loss`` compares logits (b, K) with ``labels`` (b,). ``exact`` is ``forward`` in float32: asked
    again where a coarser one is wrong, so that no sample is counted as broken by rounding alone.
    """

    def __init__(self, forward, labels: Tensor, loss: Callable, exact=None):
        self.forward, self.exact, self.loss = forward, exact, loss
        self.labels = labels
        self.checked = False  # once, because reading the values waits for the GPU

    def __call__(self, images: Tensor) -> Tensor:
        return self.loss(self.logits(images, self.labels), self.labels)

    def logits(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return logits (b, K); UserError, at first, for probabilities or labels out of range."""
        logits = self.forward(images)
        if not self.checked:
            check_logits(logits, labels)
            self.checked = True
        return logits

    def judge(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and rightness, each (b,), of images (b, 3, H, W) of the samples ``rows``."""
        labels = self.labels[rows]
        logits = self.logits(images, labels)
        right = logits.detach().argmax(1) == labels
        if self.exact is not None and not right.all():
            with torch.no_grad():
                right[~right] = self.exact(images[~right]).argmax(1) == labels[~right]
        return self.loss(logits, labels), right


class GradientAttack:
    """Ascend a per-sample loss inside a ball around each image.

    Losses are summed, never averaged, and every sample's start comes from its own seed: neither
    the batch size nor the other images of the batch matter (up to float noise of the model).
    Gradients are taken with respect to the images only: no parameter's ``.grad``, no
    ``requires_grad`` and no train/eval mode is touched, and the loop works inside ``no_grad`` and
    ``inference_mode``. It computes in float32; a loss that wants autocast switches it on itself.

    Args:
        loss_fn: images (B, 3, H, W) in [0, 1] -> losses (B,); see :func:`objective_for`.
        spec: the attack. With ``drop`` every iterate is scored and a sample keeps the first one
            that is misclassified; ``loss_fn`` must be a :class:`Labelled` loss then.

    Source: Madry et al., 2018 (arXiv 1706.06083); the final iterate is returned.
    """

    def __init__(self, loss_fn: Callable[[Tensor], Tensor], spec: AttackSpec):
        self.loss_fn = loss_fn
        self.spec = spec

    # --- hooks -------------------------------------------------------------------------------

    def begin(self, clean: Tensor) -> None:
        """Prepare for the clean images (B, 3, H, W); called once per batch."""

    def start(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return the first iterate (B, 3, H, W); called once at the start of every restart."""
        if self.spec.start == "zero":
            return clean.clone()
        noise = drawn(torch.rand, generators(seeds), clean)  # (B, 3, H, W), U[0, 1)
        if self.spec.start == "uniform":
            noise = 2 * noise - 1
        return clean + self.spec.eps * noise

    def normalize(self, grad: Tensor) -> Tensor:
        """Turn the gradient into the step direction of unit length in the norm."""
        return grad.sign()

    def project(self, clean: Tensor, images: Tensor) -> Tensor:
        """Return the nearest point to ``images`` in the ball around ``clean`` and in [0, 1]."""
        eps = self.spec.eps
        return images.clamp(clean - eps, clean + eps).clamp(0, 1)

    def objective(self, images: Tensor) -> Tensor:
        """Return the ascended loss (B,)."""
        return self.loss_fn(images)

    def first_loss(self, loss: Tensor, images: Tensor) -> Tensor:
        """Return the loss (B,) at the start ``images``, where :meth:`objective` was ``loss``."""
        return loss.detach()

    def judge(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """With ``drop``: return :meth:`objective` and rightness, each (b,), of samples ``rows``."""
        return self.loss_fn.judge(images, rows)

    def keep(self, left: Tensor) -> None:
        """With ``drop``: forget the samples of the last step where ``left`` (b,) is False."""

    # --- loop --------------------------------------------------------------------------------

    def run(
        self,
        pixels: Tensor,
        seeds: Sequence[int],
        still_right: Callable[[Tensor], Tensor] | None = None,
        *,
        scored: bool = True,
    ) -> AttackResult:
        """Attack pixels (B, 3, H, W) in [0, 1] with B seeds, integers.

        UserError if pixels are outside [0, 1] or NaN, or the loss has no graph to them; NotFinite
        if the loss or its gradient is not finite.

        Args:
            still_right: images -> (B,) bool, True where the model is right. With it, restarts keep
                a misclassified image before a classified one, then the one of higher loss;
                without it, the one of highest loss.
            scored: evaluate the loss at the returned images. Without it one forward is saved,
                for training, which computes its own loss there. Restarts are always scored.
        """
        scored = scored or self.spec.restarts > 1 or self.spec.steps == 0
        with isolated(pixels, seeds) as clean:
            self.begin(clean)
            kept, rows = None, torch.arange(len(clean), device=clean.device)
            for restart in range(self.spec.restarts):
                if restart and not len(rows):
                    break
                own = [another_seed(seeds[i], restart) for i in rows.tolist()]
                if self.spec.drop:
                    found = self._until_broken(clean[rows], own, rows)
                else:
                    found = self._once(clean, own, still_right, scored)
                if kept:
                    kept.keep_worst(found, rows)
                kept = kept or found
                if self.spec.drop:
                    rows = kept.right.nonzero().flatten()  # (b,), right under all restarts so far
        kept.measure(clean)
        return kept

    def _until_broken(self, clean: Tensor, seeds: list[int], rows: Tensor) -> AttackResult:
        """Take the samples ``rows`` from one start, each to its first misclassified iterate."""
        with torch.no_grad():
            images = self.project(clean, self.start(clean, seeds))
        zeros, left = clean.new_zeros(len(clean)), torch.arange(len(clean), device=clean.device)
        found = AttackResult.untouched(clean, zeros, zeros == 0)
        for step in progress.steps(self.spec.steps + 1):
            images.requires_grad_(True)
            loss, right = self.judge(images, rows[left])
            value = _one_each(loss, images).detach()
            check_finite("the attack's loss is", value)
            if step == 0:
                found.loss_first = value.clone()
            over = ~right | (step == self.spec.steps)
            at = left[over]
            found.images[at], found.right[at] = images.detach()[over], right[over]
            found.loss_last[at] = value[over]
            if over.all():
                break
            grad, peak = gradient_of(loss, images)
            check_finite("the attack's gradient is", peak)
            found.zero_grad[left] |= peak == 0
            left = left[~over]
            self.keep(~over)
            with torch.no_grad():
                step_by = self.spec.alpha * self.normalize(grad[~over])
                images = self.project(clean[left], images.detach()[~over] + step_by)
        return found

    def _once(self, clean: Tensor, seeds: list[int], still_right, scored: bool) -> AttackResult:
        with torch.no_grad():
            images = self.project(clean, self.start(clean, seeds))
        zero_grad = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        first, finite = None, []  # finite: losses and gradients in turn
        for _ in progress.steps(self.spec.steps):
            images.requires_grad_(True)
            loss = _one_each(self.objective(images), images)
            grad, peak = gradient_of(loss, images)
            finite += [loss.detach().isfinite().all(), peak.isfinite().all()]
            zero_grad |= peak == 0
            first = self.first_loss(loss, images) if first is None else first
            with torch.no_grad():
                step = self.spec.alpha * self.normalize(grad)
                images = self.project(clean, images.detach() + step)
        with torch.no_grad():
            last = _one_each(self.objective(images), images) if scored else loss.detach()
            finite.append(last.isfinite().all())
            right = None if still_right is None else still_right(images).bool()
        for i, fine in enumerate(torch.stack(finite).tolist()):  # once, as it waits for the GPU
            if not fine:
                what = ("loss", "gradient")[i % 2]
                raise NotFinite(f"the attack's {what} is not finite; compute in fp32")
        first = last.clone() if first is None else first
        return AttackResult(images, 0.0, zero_grad, first, last, right)


def _one_each(loss: Tensor, images: Tensor) -> Tensor:
    if loss.shape != images.shape[:1]:
        raise ValueError(f"a loss per sample is needed, got shape {tuple(loss.shape)}")
    return loss
