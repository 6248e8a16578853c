"""Square attack: random search with square-shaped changes. It sees logits, never a gradient.

That makes it the test of masked gradients: where it breaks samples that the gradient attacks leave
whole, those attacks are not to be believed.

Source: Andriushchenko et al., 2020 (arXiv 1912.00049), algorithms 1 to 3; what the paper leaves
open is done as in AutoAttack.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from ..utils import progress
from ..utils.seeds import generators
from .base import AttackResult, LabelledAttack
from .geometry import into_ball, length

P_INIT = 0.8  # share of the image's area that the first squares cover
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which it is halved
TINY = 1e-12
Generators = Sequence[torch.Generator]  # one on the CPU per image


class Square(LabelledAttack):
    """Square attack in L_inf or L2; of the spec, norm, eps, steps and restarts are used.

    Raises the margin by one random square a query; ``steps`` are the queries of a restart, after
    its start. A sample stops at the first image that the model gets wrong; one that never breaks
    is returned where its margin was highest, which may be the clean image.
    """

    @torch.no_grad()
    def search(
        self, clean: Tensor, labels: Tensor, logits: Tensor, seeds: list[int], turn: int
    ) -> AttackResult:
        linf, eps = self.spec.norm == "linf", self.spec.eps
        begin, change = (stripes, recolour) if linf else (tiles, move_mass)
        draws = generators(seeds)
        images = begin(clean, eps, draws)
        margin, right = self.score(images, labels)
        for query in progress.steps(self.spec.steps):
            left = right.nonzero().flatten()  # (b,)
            if not len(left):
                break
            own = [draws[i] for i in left.tolist()]
            side = side_of(query, self.spec.norm, *clean.shape[2:])
            new = change(clean[left], images[left], side, eps, own)
            new_margin, new_right = self.score(new, labels[left])
            better = ~new_right | (new_margin > margin[left])
            taken = left[better]
            images[taken], margin[taken] = new[better], new_margin[better]
            right[taken] = new_right[better]
        return AttackResult(images, 0.0, torch.zeros_like(right), margin, margin, right)


def covered_share(query: int) -> float:
    """Return the share of the area that squares cover at a query (from 0)."""
    return P_INIT / 2 ** bisect_left(HALVINGS, query)


def side_of(query: int, norm: str, height: int, width: int) -> int:
    """Return the side of the squares, in pixels; odd in L2 unless the image is too small."""
    side = round(math.sqrt(covered_share(query) * height * width))
    side = max(side, 1) if norm == "linf" else max(side, 3) // 2 * 2 + 1
    return min(side, height, width)


# Starts and random changes: pure functions of clean images (b, C, H, W) in [0, 1], a radius eps and
# one generator per image; all return images in the ball and in [0, 1].

# --- L_inf: every pixel by eps or -eps, in squares -----------------------------------------------


def stripes(clean: Tensor, eps: float, draws: Generators) -> Tensor:
    """Return the start: vertical stripes of +-eps, by channel."""
    channels, _, width = clean.shape[1:]
    signs = _signs(_draw(draws, channels * width, clean)).view(-1, channels, 1, width)
    return into_ball(clean, clean + eps * signs, eps, "linf")


def recolour(clean: Tensor, images: Tensor, side: int, eps: float, draws: Generators) -> Tensor:
    """Return ``images`` with one square each pushed to an edge of the ball, by channel."""
    drawn = _draw(draws, 2 + clean.shape[1], clean)  # (b, 2 + C)
    new = images.clone()
    new[_window(images, drawn[:, :2], side)] += 2 * eps * _signs(drawn[:, 2:])[:, :, None, None]
    return into_ball(clean, new, eps, "linf")


# --- L2: hills and valleys, whose mass wanders between windows ----------------------------------


def pyramid(height: int, width: int) -> Tensor:
    """Return a (height, width) hill of length 1, falling off in square rings from its middle."""
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    ring = torch.maximum(rows[:, None], columns[None])  # (height, width)
    falls = 1 / torch.arange(1, max(height, width) // 2 + 2) ** 2
    hill = falls.flip(0).cumsum(0).flip(0)[ring]  # sum of 1 / k^2 from the ring outwards
    return hill / hill.norm().clamp_min(TINY)


def double_pyramid(side: int) -> Tensor:
    """Return (side, side) of length 1: a hill above a valley."""
    both = torch.cat([pyramid(side // 2, side), -pyramid(side - side // 2, side)])
    return both / both.norm()


def tiles(clean: Tensor, eps: float, draws: Generators) -> Tensor:
    """Return the start: a grid of tiles, a fifth of the image wide, of one double pyramid each."""
    count, channels, height, width = clean.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    drawn = _draw(draws, rows * columns * (1 + channels), clean)
    drawn = drawn.view(count, rows, columns, 1 + channels)
    signs = _signs(drawn[..., 1:])
    tiled = torch.einsum("brsc,brsij->bcrisj", signs, _turned(side, drawn[..., 0]))
    change = torch.zeros_like(clean)
    tall, wide = rows * side, columns * side
    top, left = (height - tall) // 2, (width - wide) // 2
    # (b, C, rows, side, columns, side) -> (b, C, tall, wide)
    change[:, :, top : top + tall, left : left + wide] = tiled.reshape(count, channels, tall, wide)
    return _to_edge(clean, change, eps)


def move_mass(clean: Tensor, images: Tensor, side: int, eps: float, draws: Generators) -> Tensor:
    """Return ``images`` with a second window emptied and a new hill added to a first one.

    The first window then holds the squared length of both, and what the ball left unused.
    """
    channels = clean.shape[1]
    drawn = _draw(draws, 5 + channels, clean)  # (b, 5 + C)
    change = images - clean
    first, second = (_window(change, drawn[:, i : i + 2], side) for i in (0, 2))
    rest = change.clone()
    rest[first] = rest[second] = 0
    freed = (change - rest).square().sum(dim=(2, 3), keepdim=True)  # (b, C, 1, 1)
    unused = (eps**2 - length(change, "l2").square()).clamp_min(0) / channels  # (b, 1, 1, 1)
    hill = _turned(side, drawn[:, 4])[:, None]  # (b, 1, side, side)
    new = _signs(drawn[:, 5:])[:, :, None, None] * hill + _unit(change[first])
    rest[first] = _unit(new) * (unused + freed).sqrt()
    return _to_edge(clean, rest, eps)


# --- parts --------------------------------------------------------------------------------------


def _draw(draws: Generators, count: int, like: Tensor) -> Tensor:
    """Return U[0, 1) numbers (b, count), every row from its own generator."""
    return torch.stack([torch.rand(count, generator=g) for g in draws]).to(like)


def _signs(drawn: Tensor) -> Tensor:
    return (drawn >= 0.5).to(drawn) * 2 - 1


def _turned(side: int, drawn: Tensor) -> Tensor:
    """Return a double pyramid or its transpose for every draw (...): (..., side, side)."""
    hill = double_pyramid(side).to(drawn)
    return torch.where(drawn[..., None, None] > 0.5, hill.t(), hill)


def _unit(change: Tensor) -> Tensor:
    """Return changes (b, C, s, s) scaled to length 1 in every channel."""
    return change / (torch.linalg.vector_norm(change, dim=(2, 3), keepdim=True) + TINY)


def _to_edge(clean: Tensor, change: Tensor, eps: float) -> Tensor:
    """Return images at the ball's edge along ``change``, as far as [0, 1] allows."""
    return into_ball(clean, clean + eps * change / (length(change, "l2") + TINY), eps, "l2")


def _window(images: Tensor, drawn: Tensor, side: int) -> tuple[Tensor, ...]:
    """Return the index of one square (b, C, side, side) per image, placed by ``drawn`` (b, 2).

    As in the authors' code, squares never touch the last row and column unless they span them.
    """
    count, channels, *size = images.shape
    steps = torch.arange(side, device=images.device)
    free = torch.tensor(size, device=images.device) - side
    rows, columns = ((drawn * free).long()[:, :, None] + steps).unbind(dim=1)  # (b, side) each
    samples = torch.arange(count, device=images.device)[:, None, None, None]
    every = torch.arange(channels, device=images.device)[:, None, None]
    return samples, every, rows[:, None, :, None], columns[:, None, None, :]
