"""RAP: a black-box attack whose images are made on a surrogate, in flat regions of its loss.

Before each step the image is moved to the worst point for the attack nearby, the reverse
perturbation, and the gradient is taken there: where the loss stays high all around, it is more
likely to be high for another model too.

Source: Qin et al., 2022 (arXiv 2210.05968), algorithm 1 with late start (RAP-LS) and input
diversity; where the paper leaves things open, its authors' code and AdvPT's, and
:mod:`.settings` says which default is whose. AdvPT's public code leaves the reverse
perturbation out unless a flag is given; here it is always there. Input diversity resizes
bilinearly, theirs by nearest pixels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import losses
from ..utils.seeds import generators
from .base import another_seed, drawn, gradient_of
from .family import Diversity
from .geometry import into_ball
from .settings import parse_255
from .spec import AttackSpec

REVERSE = -3  # seeds apart from those of the restarts and of input diversity


class RAP(Diversity):
    """Ascend the surrogate's loss at the reversely perturbed image.

    Randomness of a sample comes from its own seed, so that neither the batch size nor the order
    matters. ``zero_grad`` and the two losses of the result are the surrogate's, the losses those of
    the images themselves; nothing is known of the tested model.

    ``logits`` is the surrogate, images (b, 3, H, W) in [0, 1] -> logits (b, K). It is led away from
    ``labels`` (B,) among its K classes or, without them, its own answers to the clean images.
    Objectives are ``logit`` (MaxLogit: minus the label's logit) and ``ce``, in linf.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor], labels: Tensor | None, spec: AttackSpec):
        super().__init__(self.ascended, spec)
        self.logits, self.given = logits, labels
        self.late_start, self.inner_steps = spec.kwargs["late_start"], spec.kwargs["inner_steps"]
        self.inner_eps = parse_255(spec.kwargs["inner_eps"], "inner_eps")
        self.labels: Tensor | None = None  # (B,)
        self.noise: list[torch.Generator] = []
        self.step = 0

    def begin(self, clean: Tensor) -> None:
        if self.given is None:
            with torch.no_grad():
                self.labels = self.logits(clean).argmax(1)
        else:  # a copy: a tensor made in inference mode cannot take part in a backward pass
            self.labels = self.given.clone().to(clean.device)

    def ascended(self, images: Tensor) -> Tensor:
        """Return the attack's loss (B,) at images (B, 3, H, W)."""
        logits = self.logits(images)
        if self.spec.objective == "ce":
            return losses.cross_entropy(logits, self.labels)
        return -logits.float().gather(1, self.labels[:, None])[:, 0]

    def start(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        self.noise = generators(another_seed(seed, REVERSE) for seed in seeds)
        self.step = 0
        return super().start(clean, seeds)

    def objective(self, images: Tensor) -> Tensor:
        if not images.requires_grad:
            return super().objective(images)
        self.step += 1
        if self.step > self.late_start and self.inner_eps:
            images = images + self.reverse(images.detach())
        return super().objective(images)

    def reverse(self, images: Tensor) -> Tensor:
        """Return what to add to images (B, 3, H, W) so that the surrogate is surer of the label.

        From a random start, ``inner_steps`` signed steps of ``inner_eps / inner_steps`` descend the
        cross-entropy, for any objective of the attack; the sum stays in [0, 1].
        """
        noise = 2 * drawn(torch.rand, self.noise, images) - 1  # (B, 3, H, W), U[-1, 1)
        moved = into_ball(images, images + self.inner_eps * noise, self.inner_eps, "linf")
        for _ in range(self.inner_steps):
            moved.requires_grad_(True)
            loss = losses.cross_entropy(self.logits(moved), self.labels)
            step = self.inner_eps / self.inner_steps * gradient_of(loss, moved)[0].sign()
            moved = into_ball(images, moved.detach() - step, self.inner_eps, "linf")
        return moved.detach() - images
