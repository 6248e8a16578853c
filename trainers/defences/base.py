"""The base of input defences, and how one is put in front of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from ..utils.errors import UserError

DEFENCES: dict[str, type[Defence]] = {}  # by name


def register(cls: type[Defence]) -> type[Defence]:
    """Make a defence known by its ``name``, as ``DEFENCE.NAME`` gives it."""
    DEFENCES[cls.name] = cls
    return cls


class Defence:
    """Purifies images before the model sees them; the model itself is unchanged."""

    name: str  # as in DEFENCE.NAME
    settings: tuple[str, ...] = ()  # arguments and attributes, keys of DEFENCE in capitals
    random = False  # whether the seeds matter
    differentiable = False  # whether gradients flow through __call__
    on_logits = False  # it answers in place of the model: no attack on features goes through it
    copies = 1  # images that the model sees for one

    @classmethod
    def from_cfg(cls, node) -> Defence:
        """Build the defence from the config node ``DEFENCE``, loading what it names."""
        return cls(**{key: node[key.upper()] for key in cls.settings})

    def describe(self) -> dict:
        """Return the name and all that the result depends on: JSON-able, for record and keys."""
        return {"name": self.name} | {key: getattr(self, key) for key in self.settings}

    def __call__(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Purify images (B, 3, H, W) in [0, 1]; shape and range stay.

        An image's randomness comes only from its own one of the B ``seeds``, so that the rest of
        the batch has no effect.
        """
        raise NotImplementedError

    def answer(
        self,
        forward: Callable[[Tensor], Tensor],
        images: Tensor,
        seeds: Sequence[int],
        *,
        attack: bool = False,
    ) -> Tensor:
        """Return what the model ``forward`` behind the defence answers, (B, D).

        For an ``attack`` the answer is to be differentiated in the images.
        """
        return forward((self.straight_through if attack else self)(images, seeds))

    def straight_through(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return the purified images with a gradient for an adaptive attack.

        Exact where the defence is differentiable, else the identity's, which is backward pass
        differentiable approximation (BPDA; Athalye et al., 2018, arXiv 1802.00420, section 4.1).
        """
        if self.differentiable:
            return self(images, seeds)
        with torch.no_grad():
            purified = self(images.detach(), seeds)
        return straight_through(images, purified)


def straight_through(images: Tensor, purified: Tensor) -> Tensor:
    """Return ``purified`` with the gradient of the identity to ``images``."""
    return purified.to(images) + (images - images.detach())  # the sum adds exactly 0


def each_image(images: Tensor, purify: Callable) -> Tensor:
    """Apply ``purify``, (H, W, 3) float64 array -> the same, to images (B, 3, H, W) on the CPU."""
    arrays = images.detach().permute(0, 2, 3, 1).cpu().double().numpy()  # (B, H, W, 3)
    if not len(arrays):
        return images.detach()
    purified = torch.stack([torch.from_numpy(purify(array)) for array in arrays])
    return purified.permute(0, 3, 1, 2).to(images).clamp(0, 1)  # (B, 3, H, W)


def need(what: str, *modules: str, packages: str) -> None:
    """Refuse a defence whose packages are not installed."""
    if missing := [module for module in modules if find_spec(module) is None]:
        raise UserError(
            f"{what} needs {packages}, but {', '.join(missing)} cannot be imported; "
            f"install with: pip install {packages}"
        )


# --- in front of a model -----------------------------------------------------------------------


def content_seeds(images: Tensor) -> list[int]:
    """Return a 63-bit seed per image, a hash of its pixels.

    An image gets the same seed in every batch and at every position; an attack that moves a pixel
    gets another draw.
    """
    rows = images.detach().float().cpu().contiguous().numpy()
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return [int.from_bytes(digest, "big") >> 1 for digest in digests]


def another_draw(seeds: Sequence[int], number: int) -> list[int]:
    """Seeds of another draw; the odd constant also spreads the low 32 bits."""
    return [(seed + number * 0xD1B54A32D192ED03) % (1 << 63) for seed in seeds]


def defended(
    forward: Callable[[Tensor], Tensor], defence: Defence | None, *, adaptive: bool, eot: int = 1
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Put a defence in front of ``forward``, images (b, 3, H, W) -> outputs (b, D).

    Args:
        forward: the undefended model; logits or features.
        defence: None leaves the model unchanged.
        adaptive: whether the attacker knows the defence and goes through it: by its gradient
            if it has one, otherwise by BPDA. If not, images are made without the defence, as in
            AdvPT's paper, and purified afterwards.
        eot: draws of a random defence over which an adaptive attacker averages the outputs
            (expectation over transformation; arXiv 1802.00420, section 4.2). Each keeps its graph.

    Returns:
        the function to evaluate and the function to attack. Both take any part of a batch in any
        order. The attacker draws again at every step and never sees the draw that is evaluated.
    """
    if defence is None:
        return forward, forward

    def evaluated(images: Tensor) -> Tensor:
        return defence.answer(forward, images, content_seeds(images))

    def attacked(images: Tensor) -> Tensor:
        seeds = content_seeds(images) if defence.random else [0] * len(images)
        outputs = [
            defence.answer(forward, images, another_draw(seeds, number), attack=True)
            for number in range(1, (eot if defence.random else 1) + 1)
        ]  # eot of (b, D)
        return torch.stack(outputs).mean(dim=0)  # (b, D)

    return evaluated, attacked if adaptive else forward
