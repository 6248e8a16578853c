"""The PGD family: momentum, input diversity, the L2 ball and a target, each by the loop's hooks.

Every part is a class of its own that overrides a few hooks and hands on to the next, so that they
combine: :func:`gradient_attack` puts together those that a spec asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import losses
from ..utils.errors import UserError
from .catalogue import family_settings
from .geometry import into_ball, length
from .gradient import GradientAttack, Labelled, _mix
from .spec import AttackSpec

DRAWS, AIM = -1, -2  # seeds apart from those of the restarts, 0 and up


class L2Ball(GradientAttack):
    """Steps and ball in the Euclidean length of the whole image.

    The start is a random direction and a radius U[0, eps]. Nearly all of a ball's volume lies at
    its surface, and starting there would cost the first steps.

    Source: Madry et al., 2018 (arXiv 1706.06083), for L2; the start is that of torchattacks.
    """

    def start(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        if self.spec.start == "one_sided":
            raise UserError(
                "attack start 'one_sided' is that of an L_inf ball; use start 'uniform' in L2"
            )
        if self.spec.start == "zero":
            return clean.clone()
        generator, change = torch.Generator(), torch.empty(clean.shape)
        for row, seed in zip(change, seeds, strict=True):
            way = torch.randn(clean.shape[1:], generator=generator.manual_seed(seed))
            row.copy_(way * (torch.rand((), generator=generator) / way.norm()))
        return clean + self.spec.eps * change.to(clean)  # (B, 3, H, W)

    def normalize(self, grad: Tensor) -> Tensor:
        return grad / length(grad, "l2").clamp_min(torch.finfo(grad.dtype).tiny)

    def project(self, clean: Tensor, images: Tensor) -> Tensor:
        return into_ball(clean, images, self.spec.eps, "l2")


class FGSM(GradientAttack):
    """One step as long as the ball's radius, from the clean image or a random start.

    Steps and alpha of the spec are not used.

    Source: Goodfellow et al., 2015 (arXiv 1412.6572).
    """

    def __init__(self, loss_fn: Callable[[Tensor], Tensor], spec: AttackSpec):
        super().__init__(loss_fn, replace(spec, alpha=spec.eps, steps=1))


class Momentum(GradientAttack):
    """Steps along the sum of all gradients so far, each of length 1 in L1.

    v <- mu v + g / mean|g|, forgotten at every start. A gradient of exactly 0 adds nothing.

    Args:
        momentum: mu >= 0; 0 forgets at every step.

    Source: Dong et al., 2018 (arXiv 1710.06081), MI-FGSM, eq. 6; mu = 1 there.
    """

    def __init__(self, loss_fn, spec: AttackSpec, *, momentum: float = 1.0, **settings):
        super().__init__(loss_fn, spec, **settings)
        self.momentum = momentum
        self.velocity: Tensor | None = None  # (b, 3, H, W)

    def start(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        self.velocity = None
        return super().start(clean, seeds)

    def normalize(self, grad: Tensor) -> Tensor:
        tiny = torch.finfo(grad.dtype).tiny
        grad = grad / grad.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
        if self.velocity is not None:
            grad = grad + self.momentum * self.velocity
        self.velocity = grad
        return super().normalize(grad)

    def keep(self, left: Tensor) -> None:
        super().keep(left)
        if self.velocity is not None:
            self.velocity = self.velocity[left]


class Diversity(GradientAttack):
    """Takes each gradient at a randomly shrunk and padded copy of the image.

    A sample draws from its own seed at every step, so that its copies depend neither on the batch
    nor on the samples left in it. Losses and answers that are kept are those of the image itself.

    Args:
        probability: of a copy instead of the image itself.
        resize: smallest size of a copy, as a share of the image's; the rest is padded with black.

    Source: Xie et al., 2019 (arXiv 1803.06978), DI-FGSM, probability 0.5; the network's input
    size is kept here, so that images shrink instead of growing from 299 to 330.
    """

    def __init__(
        self,
        loss_fn,
        spec: AttackSpec,
        *,
        probability: float = 0.5,
        resize: float = 0.9,
        **settings,
    ):
        super().__init__(loss_fn, spec, **settings)
        self.probability, self.resize = probability, resize
        self.generators: list[torch.Generator] = []
        self.started = False

    def start(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        self.generators = [torch.Generator().manual_seed(_mix(seed, DRAWS)) for seed in seeds]
        self.started = True
        return super().start(clean, seeds)

    def objective(self, images: Tensor) -> Tensor:
        if not images.requires_grad:
            return super().objective(images)
        varied = super().objective(self.vary(images))
        if not self.started:
            return varied
        self.started = False  # the loss at the start is kept
        with torch.no_grad():
            loss = super().objective(images)
        return _value_of(loss, varied)

    def judge(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            loss, right = super().judge(images, rows)
        varied, _ = super().judge(self.vary(images), rows)
        return _value_of(loss, varied), right

    def keep(self, left: Tensor) -> None:
        super().keep(left)
        kept = zip(self.generators, left.tolist(), strict=True)
        self.generators = [generator for generator, stays in kept if stays]

    def vary(self, images: Tensor) -> Tensor:
        """Return images (b, 3, H, W), each shrunk and padded by chance."""
        varied = []
        for image, generator in zip(images, self.generators, strict=True):
            chance, *place = torch.rand(4, generator=generator).tolist()
            varied.append(self._shrink(image, *place) if chance < self.probability else image)
        return torch.stack(varied)

    def _shrink(self, image: Tensor, size: float, top: float, left: float) -> Tensor:
        """Return the image (3, H, W), smaller and moved; the three numbers are in [0, 1)."""
        full = image.shape[1:]
        least = max(int(full[0] * self.resize), 1)
        height = least + int(size * max(full[0] - least, 1))  # least..H-1
        width = max(round(full[1] * height / full[0]), 1)
        small = F.interpolate(image[None], (height, width), mode="bilinear", align_corners=False)[0]
        above, before = int(top * (full[0] - height + 1)), int(left * (full[1] - width + 1))
        below, after = full[0] - height - above, full[1] - width - before
        return F.pad(small, (before, after, above, below))  # (3, H, W)


def _value_of(loss: Tensor, varied: Tensor) -> Tensor:
    """Return the value of ``loss`` with the gradient of ``varied``."""
    return varied + (loss - varied).detach()


PARTS = {
    "pgd": (),
    "fgsm": (FGSM,),
    "mi": (Momentum,),
    "di": (Diversity,),
    "mdi": (Diversity, Momentum),
}


def gradient_attack(
    loss_fn: Callable[[Tensor], Tensor], spec: AttackSpec, kwargs: Mapping | None = None
) -> GradientAttack:
    """Return the member of the PGD family that ``spec`` names, in its norm.

    Args:
        loss_fn: see :class:`GradientAttack`; with ``aim`` among ``kwargs``, an :class:`Aimed` one.
        kwargs: settings, see :func:`~.catalogue.family_settings`.

    Raises:
        UserError: a setting is unknown or out of range.
    """
    settings = family_settings(spec.name, kwargs or {})
    settings.pop("aim", None)
    parts = PARTS[spec.name] + ((L2Ball,) if spec.norm == "l2" else ())
    kind = type("".join(part.__name__ for part in parts) or "PGD", (*parts, GradientAttack), {})
    return kind(loss_fn, spec, **settings)


class Aimed(Labelled):
    """Minus the cross-entropy towards a class per sample: ascending it is a targeted attack.

    A sample counts as broken wherever it is misclassified, as the class aimed at or another.

    Args:
        forward: images (b, 3, H, W) -> logits (b, K).
        labels, aims: (B,) int64.
    """

    def __init__(self, forward, labels: Tensor, aims: Tensor, exact=None):
        with torch.inference_mode(False):
            # A copy: a tensor made in inference mode cannot take part in a backward pass.
            labels, aims = labels.clone(), aims.clone()
        super().__init__(forward, labels, losses.cross_entropy, exact)
        self.aims = aims

    def __call__(self, images: Tensor) -> Tensor:
        return -self.loss(self.logits(images, self.labels), self.aims)

    def judge(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        labels = self.labels[rows]
        logits = self.logits(images, labels)
        return -self.loss(logits, self.aims[rows]), self.right(images, logits, labels)


def aims_of(aim: str | int, logits: Tensor, labels: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return the class (B,) that a targeted attack heads for, never a sample's own.

    Args:
        aim: ``likeliest``: the wrong class of highest logit; ``random``: a wrong class, drawn from
            the sample's seed; a number: that class, but the likeliest wrong one for its samples.
        logits: (B, K) of the clean images.
        labels: (B,) int64.

    Raises:
        UserError: there is no such class.
    """
    classes = logits.shape[1]
    likeliest = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
    if aim == "likeliest":
        return likeliest
    if aim == "random":
        generator = torch.Generator()
        drawn = [
            torch.randint(classes - 1, (), generator=generator.manual_seed(_mix(int(seed), AIM)))
            for seed in seeds
        ]
        drawn = torch.stack(drawn).to(labels)
        return drawn + (drawn >= labels)  # past the own class
    if not 0 <= aim < classes:
        raise UserError(f"KWARGS.aim is {aim} but the classes are 0 to {classes - 1}")
    return torch.where(labels == aim, likeliest, torch.full_like(labels, aim))
