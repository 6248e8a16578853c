"""What the attacks on labelled images share: how they are called, and what must not leak."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import losses
from .geometry import length
from .gradient import AttackResult, NotFinite, check_logits, check_pixels
from .spec import AttackSpec


class LabelledAttack:
    """An attack that sees a model's logits and leaves samples alone once they are broken.

    A sample that is wrong at the clean image is returned as it came. Randomness comes from the
    sample's own seed and samples never meet: neither the batch size nor the order matters, nor
    that broken samples are left out of later forwards. No parameter, gradient or mode of the model
    is touched, and it works inside ``no_grad``, ``inference_mode`` and autocast, in float32.

    Args:
        logits: images (b, 3, H, W) in [0, 1] -> logits (b, K); called with any part of the batch.
        labels: (B,) int64, those of the images given to :meth:`run`.
        spec: the threat.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor], labels: Tensor, spec: AttackSpec):
        self.logits, self.labels, self.spec = logits, labels, spec

    def run(self, pixels: Tensor, seeds: Sequence[int]) -> AttackResult:
        """Attack a batch of images (B, 3, H, W) in [0, 1], each with a seed of its own.

        In the result, ``right`` is False where the sample is broken and ``loss_first`` is the loss
        at the clean image.

        Raises:
            UserError: pixels outside [0, 1] or NaN, or a model that this attack does not suit.
            NotFinite: the logits, the loss or its gradient are not finite.
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
                logits = self.logits(clean)
            if not torch.isfinite(logits).all():
                raise NotFinite("the model's logits are not finite; compute in fp32")
            check_logits(logits, labels)
            result = self.attack(clean, labels, logits, [int(seed) for seed in seeds])
        if len(clean):
            result.max_linf = float((result.images - clean).abs().max())
        return result

    def attack(
        self, clean: Tensor, labels: Tensor, logits: Tensor, seeds: list[int]
    ) -> AttackResult:
        """Return the result for clean images, given their labels (B,) and logits (B, K)."""
        raise NotImplementedError

    def score(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return margins (b,) and where the model is right (b,)."""
        logits = self.logits(images)
        margin = losses.margin(logits, labels)
        if not torch.isfinite(margin).all():
            raise NotFinite("the attack's loss is not finite; compute in fp32")
        return margin, logits.argmax(1) == labels

    def noise(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return one random change (3, H, W) per sample, of length 1 in the norm of the spec."""
        generator, linf = torch.Generator(), self.spec.norm == "linf"
        draw = torch.rand if linf else torch.randn
        noise = [draw(clean.shape[1:], generator=generator.manual_seed(s)) for s in seeds]
        noise = torch.stack(noise).to(clean)  # (b, 3, H, W)
        noise = 2 * noise - 1 if linf else noise
        return noise / length(noise, self.spec.norm)

    def gradient(
        self, images: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss (b,), its gradient (b, 3, H, W) and the logits (b, K) at ``images``.

        Args:
            loss: logits (b, K) -> losses (b,).
        """
        images = images.detach().requires_grad_()
        logits = self.logits(images)
        value = loss(logits)
        if not torch.isfinite(value).all():
            raise NotFinite("the attack's loss is not finite; compute in fp32")
        if not value.requires_grad:
            raise RuntimeError("the attack's loss does not depend on the images")
        (grad,) = torch.autograd.grad(value.sum(), images)
        if not torch.isfinite(grad).all():
            raise NotFinite("the attack's gradient is not finite; compute in fp32")
        return value.detach(), grad, logits.detach()
