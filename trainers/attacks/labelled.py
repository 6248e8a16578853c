"""The base of attacks that see logits and labels: AutoAttack's parts and torchattacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import losses
from ..utils.seeds import generators
from .base import (
    AttackResult,
    another_seed,
    check_finite,
    check_logits,
    drawn,
    gradient_of,
    isolated,
)
from .geometry import length
from .spec import AttackSpec


class LabelledAttack:
    """An attack that sees a model's logits and leaves samples alone once they are broken.

    A sample that is wrong at the clean image is returned unchanged. Randomness comes from the
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

    # --- what an attack defines ------------------------------------------------------------------

    def search(
        self, clean: Tensor, labels: Tensor, logits: Tensor, seeds: list[int], turn: int
    ) -> AttackResult:
        """Return what one run finds for right images (b, 3, H, W) with clean logits (b, K)."""
        raise NotImplementedError

    def turns(self, classes: int) -> int:
        """Return the number of runs, each on the samples that are left."""
        return self.spec.restarts

    def clean_loss(self, logits: Tensor, labels: Tensor, turn: int) -> Tensor:
        """Return the loss (b,) of that run at the clean images with logits (b, K)."""
        return losses.margin(logits, labels)

    # --- the run ---------------------------------------------------------------------------------

    def run(self, pixels: Tensor, seeds: Sequence[int]) -> AttackResult:
        """Attack a batch of images (B, 3, H, W) in [0, 1], each with a seed of its own.

        In the result, ``right`` is False where the sample is broken and ``loss_first`` is the loss
        at the clean image.

        Raises:
            UserError: pixels outside [0, 1] or NaN, or a model that this attack does not suit.
            NotFinite: the logits, the loss or its gradient are not finite.
            RuntimeError: the logits ignore the images.
        """
        with isolated(pixels, seeds, self.labels) as clean:
            labels = self.labels.clone().to(clean.device)
            with torch.no_grad():
                logits = self.logits(clean)
            check_finite("the model's logits are", logits)
            check_logits(logits, labels)
            first = self.clean_loss(logits, labels, 0)
            kept = AttackResult.untouched(clean, first, logits.argmax(1) == labels)
            for turn in range(self.turns(logits.shape[1])):
                left = kept.right.nonzero().flatten()  # (b,)
                if not len(left):
                    break
                own = [another_seed(seeds[i], turn) for i in left.tolist()]
                found = self.search(clean[left], labels[left], logits[left], own, turn)
                found.loss_first = self.clean_loss(logits[left], labels[left], turn)
                kept.keep_worst(found, left)
            kept.measure(clean)
        return kept

    # --- for its parts ---------------------------------------------------------------------------

    def score(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return margins (b,) and where the model is right (b,)."""
        logits = self.logits(images)
        margin = losses.margin(logits, labels)
        check_finite("the attack's loss is", margin)
        return margin, logits.argmax(1) == labels

    def noise(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return one random change (3, H, W) per sample, of length 1 in the norm of the spec."""
        linf = self.spec.norm == "linf"
        noise = drawn(torch.rand if linf else torch.randn, generators(seeds), clean)
        noise = 2 * noise - 1 if linf else noise
        return noise / length(noise, self.spec.norm)

    def gradient(
        self, images: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return loss (b,), gradient (b, 3, H, W), where it is exactly 0 (b,), logits (b, K).

        Args:
            loss: logits (b, K) -> losses (b,).
        """
        images = images.detach().requires_grad_()
        logits = self.logits(images)
        value = loss(logits)
        check_finite("the attack's loss is", value)
        grad, peak = gradient_of(value, images)
        check_finite("the attack's gradient is", peak)
        return value.detach(), grad, peak == 0, logits.detach()
