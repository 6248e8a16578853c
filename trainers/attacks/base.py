"""What all attacks share: their result, their checks of images and models, seeds, surroundings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..utils.errors import UserError

RANGE_SLACK = 1e-6  # interpolation in float32 may end at 1.0000001


class NotFinite(RuntimeError):
    """The attacked loss or its gradient is infinite or NaN."""


@dataclass
class AttackResult:
    """What an attack found for a batch.

    Attributes:
        images: (B, 3, H, W) float32 in [0, 1], the kept images.
        max_linf: largest absolute change of any pixel, a float in [0, 1].
        zero_grad: (B,) bool, the gradient was exactly 0 at some step of some restart.
        loss_first: (B,) loss at the start of the kept run, or at the clean image.
        loss_last: (B,) loss at ``images``; unscored, at the iterate before.
        right: (B,) bool, whether the model is right on ``images``; None where it is unknown.
        reached: of torchattacks, how far each image went: (B,) per distance ``l0`` (pixels changed
            in any channel), ``l1``, ``l2`` and ``linf``, 0 for images that came back unchanged.
            This is the result of an attack without a ball, which may break every sample.
    """

    images: Tensor
    max_linf: float
    zero_grad: Tensor
    loss_first: Tensor
    loss_last: Tensor
    right: Tensor | None = None
    reached: dict[str, Tensor] | None = None

    @classmethod
    def untouched(cls, clean: Tensor, loss: Tensor, right: Tensor) -> AttackResult:
        """Return the result before any step, for images with this loss (B,) and rightness (B,)."""
        flat = torch.zeros_like(right)
        return cls(clean.clone(), 0.0, flat, loss.clone(), loss.clone(), right.clone())

    def measure(self, clean: Tensor) -> None:
        """Set ``max_linf``, the largest change of the clean images."""
        if len(clean):
            self.max_linf = float((self.images - clean).abs().max())

    def keep_worst(self, found: AttackResult, rows: Tensor) -> None:
        """Overwrite the samples ``rows`` (b,) for which ``found`` (b rows) is worse for the model.

        A misclassified image is worse than a classified one, then the higher loss counts.
        """
        worse = found.loss_last > self.loss_last[rows]
        if self.right is not None:
            mine = self.right[rows]
            worse = (mine & ~found.right) | ((mine == found.right) & worse)
            self.right[rows] = mine & found.right
        self.zero_grad[rows] |= found.zero_grad
        for name in ("images", "loss_first", "loss_last"):
            getattr(self, name)[rows[worse]] = getattr(found, name)[worse]


@contextmanager
def isolated(pixels: Tensor, seeds: Sequence[int], labels: Tensor | None = None) -> Iterator:
    """Check a batch and give its copy in float32, where gradients work whatever surrounds it.

    Args:
        pixels: (B, 3, H, W) in [0, 1].
        seeds: B integers.
        labels: (B,) int64, where the attack knows them.

    Raises:
        UserError: pixels outside [0, 1] or NaN.
    """
    check_pixels(pixels)
    for given, what in ((seeds, "seeds"), (labels, "labels")):
        if given is not None and len(given) != len(pixels):
            raise ValueError(f"{len(pixels)} images but {len(given)} {what}")
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(pixels.device.type, enabled=False),
    ):
        yield pixels.detach().clone().float().clamp(0, 1)


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
        UserError: naming the label, or the range of the rows.
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


def check_finite(what: str, values: Tensor) -> None:
    """Raise :class:`NotFinite` if a value is infinite or NaN; this waits for the GPU."""
    if not torch.isfinite(values).all():
        raise NotFinite(f"{what} not finite; compute in fp32")


def gradient_of(loss: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient (b, 3, H, W) of losses (b,) and its largest value per sample (b,)."""
    if not loss.requires_grad:
        raise RuntimeError("the attack's loss does not depend on the images")
    (grad,) = torch.autograd.grad(loss.sum(), images)
    return grad, grad.abs().flatten(1).amax(dim=1)


def another_seed(seed: int, number: int) -> int:
    """Return the seed of restart ``number``; the odd constant also spreads the low 32 bits."""
    return (int(seed) + number * 0x9E3779B97F4A7C15) % (1 << 63)


def drawn(draw: Callable, generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Return one random change (3, H, W) per sample of ``like``, each from its own generator.

    ``draw`` is :func:`torch.rand` or :func:`torch.randn`.
    """
    noise = torch.empty(like.shape)
    for row, generator in zip(noise, generators, strict=True):
        row.copy_(draw(row.shape, generator=generator))
    return noise.to(like)  # (b, 3, H, W)


def likeliest_wrong(logits: Tensor, labels: Tensor, count: int = 1) -> Tensor:
    """Return the ``count`` wrong classes of highest logit, (T, B), at most all of them."""
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    return wrong.topk(min(count, logits.shape[1] - 1), dim=1).indices.t()
