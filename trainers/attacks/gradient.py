"""The one gradient attack loop. Methods differ in four hooks: start, normalize, project, objective.

PGD in the L_inf ball is the default. Another ball overrides ``start``, ``normalize`` and
``project``; momentum overrides ``normalize`` (and forgets its velocity in ``start``); input
diversity overrides ``objective``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import losses
from ..utils.errors import UserError
from .spec import AttackSpec

RANGE_SLACK = 1e-6  # interpolation in float32 may end at 1.0000001


class NotFinite(RuntimeError):
    """The attacked loss or its gradient is infinite or NaN."""


@dataclass
class AttackResult:
    """What one call of :meth:`GradientAttack.run` found.

    Attributes:
        images: (B, 3, H, W) float32 in [0, 1], the kept final iterates.
        max_linf: largest absolute change of any pixel, a float in [0, 1].
        zero_grad: (B,) bool, the gradient was exactly 0 at some step of some restart.
        loss_first: (B,) loss at the start of the kept run.
        loss_last: (B,) loss at ``images``; unscored, at the iterate before.
        right: (B,) bool, whether the model is right on ``images``; None where nobody asked.
    """

    images: Tensor
    max_linf: float
    zero_grad: Tensor
    loss_first: Tensor
    loss_last: Tensor
    right: Tensor | None = None


def check_pixels(pixels: Tensor) -> None:
    """Refuse images that are not (B, 3, H, W) floats in [0, 1].

    Raises:
        UserError: with the observed range.
    """
    if pixels.ndim != 4 or not pixels.is_floating_point():
        raise UserError(
            f"images must be floats of shape (B, 3, H, W), got {pixels.dtype} "
            f"of shape {tuple(pixels.shape)}"
        )
    if pixels.numel() == 0:
        return
    low, high = (float(v) for v in torch.aminmax(pixels.detach()))
    # Comparisons with NaN are false, so a single NaN is refused too.
    if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):
        raise UserError(
            f"pixels must be in [0, 1] but range from {low:.4g} to {high:.4g}; "
            "leave 'normalize' out of INPUT.TRANSFORMS, the model normalises by itself"
        )


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Refuse a model that returns probabilities, and labels it has no class for.

    Args:
        logits: (B, K) of right or wrong samples.
        labels: (B,) int64.

    Raises:
        UserError: naming the label, or what the rows look like.
    """
    classes = logits.shape[1]
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise UserError(
            f"label {int(wrong[0])} is outside 0..{classes - 1}, the model's {classes} classes"
        )
    rows = logits.detach().float()
    if classes > 1 and len(rows) and rows.min() >= 0 and (rows.sum(1) - 1).abs().max() < 1e-3:
        raise UserError(
            f"the model returns probabilities (from {float(rows.min()):.3g} to "
            f"{float(rows.max()):.3g}, rows add up to 1) but attacks need logits; leave the "
            "softmax out"
        )


def objective_for(
    spec: AttackSpec,
    forward: Callable[[Tensor], Tensor],
    *,
    labels: Tensor | None = None,
    reference: Tensor | None = None,
    exact: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Tensor], Tensor]:
    """Return the per-sample loss that ``spec.objective`` names, as a function of the images.

    Args:
        forward: images (B, 3, H, W) -> logits (B, K), or raw features (B, D) for embedding_kl.
        labels: (B,) int64, for ``ce`` and ``margin``.
        reference: logits or features of the clean images, for ``kl`` and ``embedding_kl``.
        exact: see :class:`Labelled`.
    """
    with torch.inference_mode(False):
        # A copy: a tensor made in inference mode cannot take part in a backward pass.
        labels = None if labels is None else labels.clone()
        reference = None if reference is None else reference.detach().clone()
    if spec.objective in ("ce", "margin"):
        if labels is None:
            raise ValueError(f"objective '{spec.objective}' needs labels")
        loss = losses.cross_entropy if spec.objective == "ce" else losses.margin
        return Labelled(forward, labels, loss, exact)
    if reference is None:
        raise ValueError(f"objective '{spec.objective}' needs the clean reference")
    loss = losses.kl if spec.objective == "kl" else losses.embedding_kl
    return lambda images: loss(reference, forward(images))


class Labelled:
    """A loss of logits and labels, which can also say where the model is right.

    Args:
        exact: like ``forward``, but in float32: asked again wherever a coarser ``forward`` is
            wrong, so that no sample counts as broken that is not.
    """

    def __init__(
        self, forward, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor], exact=None
    ):
        self.forward, self.labels, self.loss, self.exact = forward, labels, loss, exact
        self.checked = False  # once: a look at the values waits for the GPU

    def __call__(self, images: Tensor) -> Tensor:
        return self.loss(self.logits(images, self.labels), self.labels)

    def logits(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (b, K), checked the first time.

        Raises:
            UserError: they are probabilities, or a label is out of range.
        """
        logits = self.forward(images)
        if not self.checked:
            check_logits(logits, labels)
            self.checked = True
        return logits

    def judge(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and rightness, each (b,), of images (b, 3, H, W) of the samples ``rows``."""
        labels = self.labels[rows]
        logits = self.logits(images, labels)
        return self.loss(logits, labels), self.right(images, logits, labels)

    @torch.no_grad()
    def right(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return where the model is right (b,), by these logits and, where they doubt, exactly."""
        right = logits.argmax(1) == labels
        if self.exact is not None and not right.all():
            right[~right] = self.exact(images[~right]).argmax(1) == labels[~right]
        return right


class GradientAttack:
    """Ascend a per-sample loss inside a ball around each image.

    Losses are summed, never averaged, and every sample's start comes from its own seed: neither
    the batch size nor the other images of the batch matter (up to float noise of the model).
    Gradients are taken with respect to the images only: no parameter's ``.grad``, no
    ``requires_grad`` and no train/eval mode is touched, and the loop works inside ``no_grad`` and
    ``inference_mode``. It computes in float32 with autocast off; a loss that wants autocast
    switches it on itself.

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

    def start(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return the first iterate (B, 3, H, W); called once at the head of every restart."""
        if self.spec.start == "zero":
            return clean.clone()
        # Drawn on the CPU, sample by sample: the same start on every device and in every batch.
        generator = torch.Generator()
        noise = torch.stack(
            [torch.rand(clean.shape[1:], generator=generator.manual_seed(s)) for s in seeds]
        ).to(clean)  # (B, 3, H, W), U[0, 1)
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
        """Attack a batch.

        Args:
            pixels: (B, 3, H, W) in [0, 1].
            seeds: B integers, one per sample.
            still_right: images -> (B,) bool, True where the model is right. With it, restarts keep
                a misclassified image before a classified one, then the one of higher loss;
                without it, the one of highest loss.
            scored: evaluate the loss at the returned images. Without, one forward is saved: what
                training wants, which computes its own loss there. Restarts are always scored.

        Raises:
            UserError: pixels outside [0, 1] or NaN.
            NotFinite: the loss or its gradient is not finite.
            RuntimeError: the loss ignores the images.
        """
        check_pixels(pixels)
        seeds = [int(seed) for seed in seeds]
        if len(seeds) != len(pixels):
            raise ValueError(f"{len(pixels)} images but {len(seeds)} seeds")
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(pixels.device.type, enabled=False),
        ):
            clean = pixels.detach().clone().float().clamp(0, 1)
            if self.spec.drop:
                kept = self._drop(clean, seeds)
                kept.max_linf = _largest(kept.images, clean)
                return kept
            scored = scored or self.spec.restarts > 1 or self.spec.steps == 0
            kept = self._once(clean, seeds, still_right, scored)
            for restart in range(1, self.spec.restarts):
                again = self._once(clean, [_mix(s, restart) for s in seeds], still_right)
                _keep_worst(kept, again)
        kept.max_linf = _largest(kept.images, clean)
        return kept

    def _drop(self, clean: Tensor, seeds: list[int]) -> AttackResult:
        """Run all restarts; a sample is left alone once it is misclassified."""
        nothing = torch.zeros(len(clean), device=clean.device)
        kept = AttackResult(
            clean.clone(), 0.0, nothing.bool(), nothing.clone(), nothing - torch.inf, nothing == 0
        )
        for restart in range(self.spec.restarts):
            rows = kept.right.nonzero().flatten()  # (b,), right under all restarts so far
            if len(rows):
                again = [_mix(seeds[i], restart) if restart else seeds[i] for i in rows.tolist()]
                self._drop_once(clean, again, rows, kept)
        return kept

    def _drop_once(self, clean: Tensor, seeds: list[int], rows: Tensor, kept: AttackResult):
        with torch.no_grad():
            images = self.project(clean[rows], self.start(clean[rows], seeds))
        first = None
        for step in range(self.spec.steps + 1):
            images.requires_grad_(True)
            loss, right = self.judge(images, rows)
            self._check_shape(loss, images)
            finite = Finite()
            finite.add(loss)
            finite.check()
            first = loss.detach() if first is None else first  # (b,)
            over = ~right | (step == self.spec.steps)
            # a broken sample is kept whatever its loss, an unbroken one if it is the worst
            worse = over & (~right | (loss.detach() > kept.loss_last[rows]))
            at = rows[worse]
            kept.images[at], kept.right[at] = images.detach()[worse], right[worse]
            kept.loss_first[at], kept.loss_last[at] = first[worse], loss.detach()[worse]
            if over.all():
                return
            grad, peak = self._gradient(loss, images)
            finite.add(loss, peak)
            finite.check()
            kept.zero_grad[rows] |= peak == 0
            rows, first = rows[~over], first[~over]
            self.keep(~over)
            with torch.no_grad():
                step_by = self.spec.alpha * self.normalize(grad[~over])
                images = self.project(clean[rows], images.detach()[~over] + step_by)

    def _once(
        self, clean: Tensor, seeds: list[int], still_right, scored: bool = True
    ) -> AttackResult:
        with torch.no_grad():
            images = self.project(clean, self.start(clean, seeds))
        zero_grad = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        finite = Finite()  # looked at after the last step: a look waits for the GPU
        first = None
        for _ in range(self.spec.steps):
            images.requires_grad_(True)
            loss = self._loss(images)
            grad, peak = self._gradient(loss, images)
            finite.add(loss, peak)
            zero_grad |= peak == 0
            first = loss.detach() if first is None else first
            with torch.no_grad():
                step = self.spec.alpha * self.normalize(grad)
                images = self.project(clean, images.detach() + step)
        with torch.no_grad():
            last = self._loss(images) if scored else loss.detach()
            finite.add(last)
            right = None if still_right is None else still_right(images).bool()
        finite.check()
        first = last.clone() if first is None else first
        return AttackResult(images, 0.0, zero_grad, first, last, right)

    def _gradient(self, loss: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient (b, 3, H, W) and its largest value per sample (b,)."""
        if not loss.requires_grad:
            raise RuntimeError("the attack's loss does not depend on the images")
        (grad,) = torch.autograd.grad(loss.sum(), images)
        return grad, grad.abs().flatten(1).amax(dim=1)

    def _loss(self, images: Tensor) -> Tensor:
        loss = self.objective(images)
        self._check_shape(loss, images)
        return loss

    @staticmethod
    def _check_shape(loss: Tensor, images: Tensor) -> None:
        if loss.shape != images.shape[:1]:
            raise ValueError(f"a loss per sample is needed, got shape {tuple(loss.shape)}")


class Finite:
    """Remembers on the device whether losses and gradients stayed finite, and what went first."""

    def __init__(self):
        self.loss: Tensor | bool = True
        self.gradient: Tensor | bool = True  # where losses had been finite until then

    def add(self, loss: Tensor, peak: Tensor | None = None) -> None:
        """Take in a loss (b,) and the largest gradient per sample (b,)."""
        self.loss = loss.detach().isfinite().all() & self.loss
        if peak is not None:
            self.gradient = (peak.isfinite().all() | ~self.loss) & self.gradient

    def check(self) -> None:
        """Raise :class:`NotFinite` where something was not; this waits for the GPU."""
        for what in ("gradient", "loss"):
            if not getattr(self, what):
                raise NotFinite(f"the attack's {what} is not finite; compute in fp32")


def _largest(images: Tensor, clean: Tensor) -> float:
    return float((images - clean).abs().max()) if len(clean) else 0.0


def _mix(seed: int, restart: int) -> int:
    """A seed of its own for every restart; the odd constant also spreads the low 32 bits."""
    return (seed + restart * 0x9E3779B97F4A7C15) % (1 << 63)


def _keep_worst(kept: AttackResult, again: AttackResult) -> None:
    """Overwrite the samples of ``kept`` for which ``again`` is worse for the model."""
    worse = again.loss_last > kept.loss_last
    if kept.right is not None:
        worse = (kept.right & ~again.right) | ((kept.right == again.right) & worse)
        kept.right = kept.right & again.right
    kept.zero_grad |= again.zero_grad
    kept.images[worse] = again.images[worse]
    kept.loss_first[worse] = again.loss_first[worse]
    kept.loss_last[worse] = again.loss_last[worse]
