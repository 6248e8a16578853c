"""The PGD family: momentum, input diversity and the L2 ball, each by the loop's hooks.

Every part is a class of its own that overrides a few hooks and calls the next, so that they
combine: :func:`gradient_attack` puts together those that a spec asks for.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.seeds import generators
from .base import another_seed
from .geometry import into_ball, length
from .gradient import GradientAttack
from .spec import AttackSpec

DRAWS = -1  # seeds apart from those of the restarts, 0 and up


class L2Ball(GradientAttack):
    """Steps and ball in the Euclidean length of the whole image.

    The start is a random direction and a radius U[0, eps]. Nearly all of a ball's volume lies at
    its surface, and starting there would cost the first steps.

    Source: Madry et al., 2018 (arXiv 1706.06083), for L2; the start is that of torchattacks.
    """

    def start(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        if self.spec.start == "zero":
            return clean.clone()
        change = torch.empty(clean.shape)
        for row, generator in zip(change, generators(seeds), strict=True):
            way = torch.randn(row.shape, generator=generator)
            row.copy_(way * (torch.rand((), generator=generator) / way.norm()))
        return clean + self.spec.eps * change.to(clean)  # (B, 3, H, W)

    def normalize(self, grad: Tensor) -> Tensor:
        return grad / length(grad, "l2").clamp_min(torch.finfo(grad.dtype).tiny)

    def project(self, clean: Tensor, images: Tensor) -> Tensor:
        return into_ball(clean, images, self.spec.eps, "l2")


class Momentum(GradientAttack):
    """Steps along the sum of all gradients so far, each of length 1 in L1.

    v <- mu v + g / mean|g|, forgotten at every start, with mu the setting ``momentum`` (0 forgets
    at every step). A gradient of exactly 0 adds nothing.

    Source: Dong et al., 2018 (arXiv 1710.06081), MI-FGSM, eq. 6; mu = 1 there.
    """

    velocity: Tensor | None = None  # (b, 3, H, W)

    def start(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        self.velocity = None
        return super().start(clean, seeds)

    def normalize(self, grad: Tensor) -> Tensor:
        tiny = torch.finfo(grad.dtype).tiny
        grad = grad / grad.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
        if self.velocity is not None:
            grad = grad + self.spec.kwargs["momentum"] * self.velocity
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

    Settings: ``probability`` of a copy instead of the image itself; ``resize``, the smallest size
    of a copy as a share of the image's, the rest being padded with black.

    Source: Xie et al., 2019 (arXiv 1803.06978), DI-FGSM, probability 0.5; the network's input
    size is kept here, so that images shrink instead of growing from 299 to 330.
    """

    generators: Sequence[torch.Generator] = ()

    def start(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        self.generators = generators(another_seed(seed, DRAWS) for seed in seeds)
        return super().start(clean, seeds)

    def objective(self, images: Tensor) -> Tensor:
        return super().objective(self.vary(images) if images.requires_grad else images)

    @torch.no_grad()
    def first_loss(self, loss: Tensor, images: Tensor) -> Tensor:
        return self.loss_fn(images)

    def judge(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            loss, right = super().judge(images, rows)
        varied, _ = super().judge(self.vary(images), rows)
        return varied + (loss - varied).detach(), right  # the value of one, the other's gradient

    def keep(self, left: Tensor) -> None:
        super().keep(left)
        self.generators = [self.generators[i] for i in left.nonzero().flatten().tolist()]

    def vary(self, images: Tensor) -> Tensor:
        """Return images (b, 3, H, W), each shrunk and padded by chance."""
        varied, share = images.clone(), self.spec.kwargs["probability"]
        for i, generator in enumerate(self.generators):
            chance, *place = torch.rand(4, generator=generator).tolist()
            if chance < share:
                varied[i] = self._shrink(images[i], *place)
        return varied

    def _shrink(self, image: Tensor, size: float, top: float, left: float) -> Tensor:
        """Return the image (3, H, W), smaller and moved; the three numbers are in [0, 1)."""
        full = image.shape[1:]
        least = max(int(full[0] * self.spec.kwargs["resize"]), 1)
        height = least + int(size * max(full[0] - least, 1))  # least..H-1
        width = max(round(full[1] * height / full[0]), 1)
        small = F.interpolate(image[None], (height, width), mode="bilinear", align_corners=False)[0]
        above, before = int(top * (full[0] - height + 1)), int(left * (full[1] - width + 1))
        below, after = full[0] - height - above, full[1] - width - before
        return F.pad(small, (before, after, above, below))  # (3, H, W)


def gradient_attack(loss_fn: Callable[[Tensor], Tensor], spec: AttackSpec) -> GradientAttack:
    """Return the member of the PGD family that ``spec`` describes, in its norm."""
    chosen = [Diversity] if "probability" in spec.kwargs else []
    chosen += [Momentum] if "momentum" in spec.kwargs else []
    chosen += [L2Ball] if spec.norm == "l2" else []
    kind = type("".join(part.__name__ for part in chosen) or "PGD", (*chosen, GradientAttack), {})
    return kind(loss_fn, spec)
