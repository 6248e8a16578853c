"""Lengths, balls and hyperplanes in the space of images, shared by the attacks."""

import torch
from torch import Tensor


def length(change: Tensor, norm: str) -> Tensor:
    """Return the L_inf or L2 length (B, 1, 1, 1) of changes (B, 3, H, W)."""
    order = torch.inf if norm == "linf" else 2
    return torch.linalg.vector_norm(change, order, dim=(1, 2, 3), keepdim=True)


def into_ball(clean: Tensor, images: Tensor, eps: float, norm: str) -> Tensor:
    """Return ``images`` moved into the ball of radius ``eps`` around ``clean`` and into [0, 1]."""
    if norm == "linf":
        return images.clamp(clean - eps, clean + eps).clamp(0, 1)
    change = images - clean
    shrink = (eps / length(change, norm).clamp_min(1e-12)).clamp(max=1)
    return (clean + change * shrink).clamp(0, 1)


def to_hyperplane(points: Tensor, normal: Tensor, gap: Tensor, norm: str) -> Tensor:
    """Return the shortest moves (B, D) from points of the box [0, 1]^D to hyperplanes, inside it.

    The move d solves ``<normal, d> = -gap``. Where no point of the box does, it ends at the one
    that comes nearest to the hyperplane.

    With a room r_i on the way to the edge of the box, the solution is |d_i| = min(l u_i, r_i) with
    u_i = 1 in L_inf and |n_i| in L2, and what it gains is sum_i |n_i| min(l u_i, r_i): concave and
    piecewise linear in l, so that sorting the knots r_i / u_i gives l.

    Args:
        points, normal: (B, D).
        gap: (B,) value of the linear function at the points; 0 on the hyperplane.
        norm: ``linf`` or ``l2``.
    """
    peak = normal.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)  # against underflow below
    normal, needed = normal / peak, (gap.abs()[:, None] / peak).double()  # (B, D), (B, 1)
    heading = torch.where(gap[:, None] >= 0, -normal, normal).sign()
    room = torch.where(heading > 0, 1 - points, points)
    pace = torch.ones_like(normal) if norm == "linf" else normal.abs()  # u
    slope = normal.abs() * pace
    knots = torch.where(slope > 0, room / pace, 0)
    knots, order = knots.sort(dim=1)
    slope = slope.gather(1, order)
    used = (slope * knots).cumsum(dim=1, dtype=torch.float64)  # gain of those at the edge
    free = slope.flip(1).cumsum(dim=1, dtype=torch.float64).flip(1)  # slope of the others, (B, D)
    after = torch.cat([free[:, 1:], torch.zeros_like(free[:, :1])], dim=1)
    last = knots.shape[1] - 1
    knot = torch.searchsorted(used + after * knots, needed).clamp(max=last)  # (B, 1)
    before = torch.where(knot > 0, used.gather(1, (knot - 1).clamp_min(0)), 0)
    best = (needed - before) / free.gather(1, knot).clamp_min(1e-30)
    best = best.clamp(max=knots[:, -1:].double()).to(points)
    return heading * torch.minimum(best * pace, room)
