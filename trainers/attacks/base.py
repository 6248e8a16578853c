"""What all attacks share: their result, checks of images and models, seeds, grad modes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import losses
from ..utils.errors import UserError
from ..utils.precision import exact_products
from ..utils.seeds import generators
from .geometry import length
from .spec import AttackSpec

RANGE_SLACK = 1e-6  # interpolation in float32 may end at 1.0000001


class NotFinite(UserError):
    """The attacked loss or its gradient is infinite or NaN."""


@dataclass
class AttackResult:
    """What an attack found for a batch.

    ``reached`` is the result of an attack without a ball, which may break every sample: how far
    each image went, (B,) per distance ``l0`` (pixels changed in any channel), ``l1``, ``l2`` and
    ``linf``, 0 for images that came back unchanged.
    """

    images: Tensor  # (B, 3, H, W) float32 in [0, 1], the kept ones
    max_linf: float  # largest absolute change of any pixel, in [0, 1]
    zero_grad: Tensor  # (B,) bool, the gradient was exactly 0 at some step of some restart
    loss_first: Tensor  # (B,) at the start of the kept run, or at the clean image
    loss_last: Tensor  # (B,) at ``images``; unscored, at the iterate before
    right: Tensor | None = None  # (B,) bool, whether the model is right on ``images``, if known
    reached: dict[str, Tensor] | None = None  # of torchattacks

    @classmethod
    def untouched(cls, clean: Tensor, loss: Tensor, right: Tensor) -> "AttackResult":
        """Return the result before any step, for images with this loss (B,) and rightness (B,)."""
        flat = torch.zeros_like(right)
        return cls(clean.clone(), 0.0, flat, loss.clone(), loss.clone(), right.clone())

    def measure(self, clean: Tensor) -> None:
        """Set ``max_linf``, the largest change of the clean images."""
        if len(clean):
            self.max_linf = float((self.images - clean).abs().max())

    def keep_worst(self, found: "AttackResult", rows: Tensor) -> None:
        """Overwrite the samples ``rows`` (b,) for which ``found`` (b rows) is worse for the model.

        A misclassified image is worse than a classified one; among equals the higher loss is worse.
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
    """Check a batch and yield its copy in float32, with gradients enabled in any context.

    ``pixels`` are (B, 3, H, W), ``seeds`` B integers, ``labels`` (B,) where the attack knows them.
    UserError if pixels are outside [0, 1] or NaN.
    """
    check_pixels(pixels)
    for given, what in ((seeds, "seeds"), (labels, "labels")):
        if given is not None and len(given) != len(pixels):
            raise ValueError(f"{len(pixels)} images but {len(given)} {what}")
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(pixels.device.type, enabled=False),
        exact_products(),
    ):
        yield pixels.detach().clone().float().clamp(0, 1)


def check_pixels(pixels: Tensor) -> None:
    """Refuse images that are not (B, 3, H, W) floats in [0, 1], with the observed range."""
    if pixels.ndim != 4 or not pixels.is_floating_point():
        raise UserError(
            f"images must be floats of shape (B, 3, H, W), got {pixels.dtype} "
            f"of shape {tuple(pixels.shape)}"
        )
    low, high = map(float, torch.aminmax(pixels.detach())) if pixels.numel() else (0, 1)
    # Comparisons with NaN are false, so a single NaN is refused too.
    if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):
        raise UserError(
            f"pixels must be in [0, 1] but range from {low:.4g} to {high:.4g}; "
            "leave 'normalize' out of INPUT.TRANSFORMS, the model normalises by itself"
        )


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Refuse logits (B, K) that are probabilities, and labels (B,) that have no class."""
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
    """Return the gradient (b, 3, H, W) of losses (b,), its peaks (b,); UserError if cut off."""
    if not loss.requires_grad:
        raise UserError(
            "the attack's loss does not depend on the images through autograd; remove detach(), "
            "no_grad() and NumPy out of the model's forward pass"
        )
    (grad,) = torch.autograd.grad(loss.sum(), images)
    return grad, grad.abs().flatten(1).amax(dim=1)


def another_seed(seed: int, number: int) -> int:
    """Return the seed of restart ``number``; the odd constant also spreads the low 32 bits."""
    return (int(seed) + number * 0x9E3779B97F4A7C15) % (1 << 63)


def drawn(draw: Callable, draws: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Return one random change (3, H, W) per sample of ``like``, each from its own generator.

    ``draw`` is :func:`torch.rand` or :func:`torch.randn`.
    """
    noise = torch.empty(like.shape)
    for row, generator in zip(noise, draws, strict=True):
        row.copy_(draw(row.shape, generator=generator))
    return noise.to(like)  # (b, 3, H, W)


def likeliest_wrong(logits: Tensor, labels: Tensor, count: int = 1) -> Tensor:
    """Return the ``count`` wrong classes of highest logit, (T, B), at most all of them."""
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    return wrong.topk(min(count, logits.shape[1] - 1), dim=1).indices.t()


class LabelledAttack:
    """The base of AutoAttack's parts and torchattacks: it sees logits and drops broken samples.

    A sample that is wrong at the clean image is returned unchanged. Randomness comes from the
    sample's own seed and samples are independent: the result depends neither on batch size and
    order, nor on broken samples being left out of later forwards. No parameter, gradient or mode
    of the model is changed, and it works inside ``no_grad``, ``inference_mode`` and autocast, in
    float32.

    ``logits`` turns images (b, 3, H, W) in [0, 1], any part of the batch, into logits (b, K);
    ``labels`` (B,) are those of the images given to :meth:`run`.
    """

    # One wrong answer breaks a sample. False for random logits: then no sample is left out and
    # every run is taken to its end. FAB and Square need answers that decide.
    decides = True

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
        at the clean image. UserError if pixels are outside [0, 1] or NaN, or the attack does not
        suit the model, such as NotFinite for logits, a loss or a gradient that are not finite.
        """
        with isolated(pixels, seeds, self.labels) as clean:
            labels = self.labels.clone().to(clean.device)
            with torch.no_grad():
                logits = self.logits(clean)
            check_finite("the model's logits are", logits)
            check_logits(logits, labels)
            first = self.clean_loss(logits, labels, 0)
            kept = AttackResult.untouched(clean, first, self.right(logits, labels))
            for turn in range(self.turns(logits.shape[1])):
                left = (kept.right | (not self.decides)).nonzero().flatten()  # (b,)
                if not len(left):
                    break
                own = [another_seed(seeds[i], turn) for i in left.tolist()]
                found = self.search(clean[left], labels[left], logits[left], own, turn)
                found.loss_first = self.clean_loss(logits[left], labels[left], turn)
                kept.keep_worst(found, left)
            kept.measure(clean)
        return kept

    # --- for its parts ---------------------------------------------------------------------------

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return where the model is right (b,), which is everywhere if no answer decides."""
        return (logits.argmax(1) == labels) | (not self.decides)

    def score(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return margins (b,) and where the model is right (b,)."""
        logits = self.logits(images)
        margin = losses.margin(logits, labels)
        check_finite("the attack's loss is", margin)
        return margin, self.right(logits, labels)

    def noise(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return one random change (3, H, W) per sample, of length 1 in the norm of the spec."""
        draws = generators(seeds)
        if self.spec.norm == "linf":
            noise = 2 * drawn(torch.rand, draws, clean) - 1
        else:
            noise = drawn(torch.randn, draws, clean)
        return noise / length(noise, self.spec.norm)

    def gradient(
        self, images: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return loss (b,), gradient (b, 3, H, W), where it is exactly 0 (b,), logits (b, K).

        ``loss`` turns logits (b, K) into losses (b,).
        """
        images = images.detach().requires_grad_()
        logits = self.logits(images)
        value = loss(logits)
        check_finite("the attack's loss is", value)
        grad, peak = gradient_of(value, images)
        check_finite("the attack's gradient is", peak)
        return value.detach(), grad, peak == 0, logits.detach()
