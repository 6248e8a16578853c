"""FAB-T: the targeted Fast Adaptive Boundary attack, which looks for the nearest wrong image.

Instead of raising a loss inside a ball, it walks along the linearised boundary between the label
and one other class, back towards the clean image whenever it has crossed. What it finds breaks a
sample if it lies in the ball.

Source: Croce & Hein, 2020 (arXiv 1907.02044), algorithm 1; constants of AutoAttack (2003.01690).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..utils import progress
from .base import AttackResult, LabelledAttack, another_seed, likeliest_wrong
from .geometry import into_ball, length, to_hyperplane

ALPHA_MAX = 0.1  # largest weight of the step that starts at the clean image
ETA = 1.05  # how far a step goes beyond the linearised boundary
BETA = 0.9  # share of the perturbation kept once the boundary is crossed
TARGETS = 9  # wrong classes aimed at, one run each


class FAB(LabelledAttack):
    """FAB-T in L_inf or L2; of the spec, norm, eps, steps and restarts are used.

    Runs aim at each of the likeliest wrong classes (all K - 1 where there are fewer than
    :data:`TARGETS`) in turn, from the clean image and, on further restarts, from a random one. A
    misclassified iterate of any class is a hit; a sample leaves the search with
    its first one inside the ball. One that never breaks returns its nearest wrong image, moved
    into the ball. The losses of the result are margins.
    """

    def turns(self, classes: int) -> int:
        """Return 1: its runs share the nearest image, see :meth:`nearest`."""
        return 1

    @torch.no_grad()
    def search(
        self, clean: Tensor, labels: Tensor, logits: Tensor, seeds: list[int], turn: int
    ) -> AttackResult:
        aims = likeliest_wrong(logits, labels, TARGETS)  # (T, b)
        nearest, _, flat = self.nearest(clean, labels, aims, seeds)
        images = into_ball(clean, nearest, self.spec.eps, self.spec.norm)
        margin, right = self.score(images, labels)
        return AttackResult(images, 0.0, flat, margin, margin, right)

    def nearest(
        self, clean: Tensor, labels: Tensor, aims: Tensor, seeds: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nearest wrong images, their distances and where a gradient was exactly 0.

        Runs aim at the classes ``aims`` (T, B). The distance is inf where nothing wrong was found.
        The search of a sample ends at its first one within eps; eps 0 looks for the shortest.
        """
        nearest = clean.clone()
        norms = torch.full_like(clean[:, 0, 0, 0], torch.inf)  # (B,)
        flat = torch.zeros_like(norms, dtype=torch.bool)
        turns = [(aim, restart) for aim in aims for restart in range(self.spec.restarts)]
        for turn, (aim, restart) in enumerate(turns):
            images = clean.clone()
            if restart:
                images = self.start(clean, [another_seed(seed, turn) for seed in seeds])
            for _ in progress.steps(self.spec.steps):
                left = (norms > self.spec.eps).nonzero().flatten()  # (b,)
                if not len(left):
                    return nearest, norms, flat
                origin, label = clean[left], labels[left]
                pair = torch.stack([label, aim[left]], dim=1)  # (b, 2)
                with torch.enable_grad():  # of the aimed-at logit less the label's
                    gap, normal, zero, _ = self.gradient(
                        images[left], lambda x, p=pair: x.float().gather(1, p).diff(dim=1)[:, 0]
                    )
                flat[left] |= zero
                moved = self.step(origin, images[left], gap, normal)
                broken = ~self.score(moved, label)[1]
                size = length(moved - origin, self.spec.norm).flatten()  # (b,)
                closer = broken & (size < norms[left])
                nearest[left[closer]], norms[left[closer]] = moved[closer], size[closer]
                back = origin + BETA * (moved - origin)
                images[left] = torch.where(broken[:, None, None, None], back, moved)
        return nearest, norms, flat

    def start(self, clean: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return images at half the ball's radius in a random direction."""
        return (clean + self.spec.eps / 2 * self.noise(clean, seeds)).clamp(0, 1)

    def step(self, clean: Tensor, images: Tensor, gap: Tensor, normal: Tensor) -> Tensor:
        """Go beyond the linearised boundary, from the iterate and a little from the clean image.

        ``gap`` (b,) is the aimed-at logit less the label's, ``normal`` (b, 3, H, W) its gradient.
        """
        norm, flat = self.spec.norm, normal.flatten(1)  # (b, D)
        here, origin = images.flatten(1), clean.flatten(1)
        gap_clean = gap + (flat * (origin - here)).sum(dim=1)  # of the same hyperplane
        move = to_hyperplane(here, flat, gap, norm).view_as(clean)
        move_clean = to_hyperplane(origin, flat, gap_clean, norm).view_as(clean)
        near, far = (length(m, norm).clamp_min(1e-8) for m in (move, move_clean))
        alpha = (near / (near + far)).clamp(max=ALPHA_MAX)
        mixed = (images + ETA * move) * (1 - alpha) + (clean + ETA * move_clean) * alpha
        return mixed.clamp(0, 1)
