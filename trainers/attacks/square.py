"""Square attack: random search with square-shaped changes. It sees logits, never a gradient.

That makes it the test of masked gradients: where it breaks samples that the gradient attacks leave
whole, those attacks are not to be believed.

Source: Andriushchenko et al., 2020 (arXiv 1912.00049), algorithm 1; what the paper leaves
open is done as in AutoAttack.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import losses
from .gradient import AttackResult, _mix
from .labelled import LabelledAttack
from .spec import AttackSpec
from .squares import move_mass, recolour, stripes, tiles

QUERIES = 5000
P_INIT = 0.8  # share of the image's area that the first squares cover
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which it is halved


@dataclass
class SquareResult(AttackResult):
    """As any attack's; ``queries`` (B,) int64 counts the images shown to the model per sample.

    The clean image is not counted; restarts add up.
    """

    queries: Tensor | None = None


def covered_share(query: int, p_init: float = P_INIT) -> float:
    """Return the share of the area that squares cover at a query (from 0)."""
    return p_init / 2 ** bisect_left(HALVINGS, query)


class Square(LabelledAttack):
    """Square attack in L_inf or L2; of the spec, norm, eps and restarts are used.

    Raises the margin by one random square a query. A sample stops at the first image that the
    model gets wrong; one that never breaks is returned where its margin was highest, be it the
    clean image. Memory does not depend on the number of queries.

    Args:
        queries: squares tried per restart, after the start.
        p_init: share of the area that the first squares cover.
        rescale: stretch the schedule of the squares' size, made for 10,000 queries, to
            ``queries``. AutoAttack does not; sensible for few queries.
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        labels: Tensor,
        spec: AttackSpec,
        *,
        queries: int = QUERIES,
        p_init: float = P_INIT,
        rescale: bool = False,
    ):
        super().__init__(logits, labels, spec)
        self.queries, self.p_init, self.rescale = queries, p_init, rescale

    @torch.no_grad()
    def attack(
        self, clean: Tensor, labels: Tensor, logits: Tensor, seeds: list[int]
    ) -> SquareResult:
        margin, right = losses.margin(logits, labels), logits.argmax(1) == labels
        zeros = torch.zeros_like(labels)
        kept = SquareResult(
            clean.clone(), 0.0, zeros > 0, margin, margin.clone(), right, queries=zeros
        )
        for restart in range(self.spec.restarts):
            left = kept.right.nonzero().flatten()  # (b,)
            if len(left):
                own = [_mix(seeds[i], restart) for i in left.tolist()]
                images, margin, right, queries = self.search(clean[left], labels[left], own)
                worse = ~right | (margin > kept.loss_last[left])
                kept.images[left[worse]] = images[worse]
                kept.loss_last[left[worse]] = margin[worse]
                kept.right[left] = right
                kept.queries[left] += queries
        return kept

    def search(
        self, clean: Tensor, labels: Tensor, seeds: list[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the images of one search, their margins, where they are right and the queries."""
        linf, eps = self.spec.norm == "linf", self.spec.eps
        begin, change = (stripes, recolour) if linf else (tiles, move_mass)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = begin(clean, eps, generators)
        margin, right = self.score(images, labels)
        queries = torch.ones_like(labels)
        for query in range(self.queries):
            left = right.nonzero().flatten()  # (b,)
            if not len(left):
                break
            own = [generators[i] for i in left.tolist()]
            new = change(clean[left], images[left], self._side(query, clean), eps, own)
            new_margin, new_right = self.score(new, labels[left])
            better = ~new_right | (new_margin > margin[left])
            taken = left[better]
            images[taken], margin[taken] = new[better], new_margin[better]
            right[taken] = new_right[better]
            queries[left] += 1
        return images, margin, right, queries

    def _side(self, query: int, images: Tensor) -> int:
        """Return the side of the squares, in pixels; odd in L2 unless the image is too small."""
        height, width = images.shape[2:]
        if self.rescale:
            query = int(query / self.queries * 10000)
        side = round(math.sqrt(covered_share(query, self.p_init) * height * width))
        side = max(side, 1) if self.spec.norm == "linf" else max(side, 3) // 2 * 2 + 1
        return min(side, height, width)
