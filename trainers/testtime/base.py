"""What every test-time defence is: it answers for one image at a time, and forgets it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config.keys import Key
from ..defences.base import Defence, straight_through
from ..utils.errors import UserError

METHODS: dict[str, type[TestTime]] = {}  # by name
ROOM = 256  # images, views included, that go through the model at once
Forward = Callable[[Tensor], Tensor]  # pixels (B, 3, H, W) in [0, 1] -> logits (B, K)


def register(cls: type[TestTime]) -> type[TestTime]:
    """Make a method known by its ``name``, as ``TESTTIME.NAME`` gives it."""
    METHODS[cls.name] = cls
    return cls


class TestTime(Defence):
    """A model that adapts to every image it is shown, and starts afresh for the next.

    Args:
        victim: the model underneath, a ``Victim``.
        values: of the method's keys, by name in lower case.

    Attributes:
        keys: what ``TESTTIME.<NAME>`` holds; each default's origin stands beside it.
        needs: what it takes of the model: ``logits``, ``features`` of images, or ``text`` as well.
        passes: what the model has computed so far: images, and texts of all classes.
    """

    keys: ClassVar[dict[str, Key]] = {}
    needs = "logits"
    on_logits = True
    random = True
    most = ROOM  # images that are answered in one pass

    def __init__(self, victim: Any, **values):
        self.victim, self.values, self.passes = victim, values, Counter()
        there = {"text": victim.clip is not None, "features": victim.has_features}
        if not there.get(self.needs, True):
            what = {"text": "a CLIP with texts of the classes", "features": "image features"}
            less = "mta, ttc, " if there["features"] else ""
            raise UserError(
                f"test-time defence '{self.name}' needs {what[self.needs]}, which {victim.name} "
                f"does not offer; use {less}ensemble, zero or et3"
            )

    def __getattr__(self, name: str):
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def copies(self) -> int:
        """Images that the model sees for one."""
        return self.values.get("views", 1)

    def describe(self):
        return {"name": self.name} | self.values

    def answer(self, forward, images, seeds, *, attack=False):
        return self.in_parts(partial(self.adapted, self.counted(forward), attack), images, seeds)

    def averaged(self, forward: Forward, images: Tensor, seeds: Sequence[int]) -> Tensor | None:
        """Return the plain average over the same views (B, K), to compare with; None: no views."""
        return None

    def in_parts(self, answer: Callable, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return what ``answer`` returns, a few images at a time."""
        size = max(1, min(ROOM // self.copies, self.most))
        own = [seeds[i : i + size] for i in range(0, len(seeds), size)]
        return torch.cat([answer(x, s) for x, s in zip(images.split(size), own, strict=True)])

    def counted(self, forward: Forward) -> Forward:
        """Return the same function of images; what goes through it is counted."""

        def counting(images: Tensor) -> Tensor:
            self.passes["image forwards"] += len(images)
            return forward(images)

        return counting

    def features(self, images: Tensor) -> Tensor:
        """Return the model's raw image features (B, D), float32."""
        return self.counted(self.victim.features)(images).float()

    def adapted(self, forward: Forward, attack: bool, images: Tensor, seeds: Sequence[int]):
        """Return the adapted model's logits (B, K) of images (B, 3, H, W) in [0, 1].

        ``forward`` is the model as it is. For an ``attack`` the answer is to be differentiated:
        what has no gradient gets a surrogate's. An image's randomness comes from its seed alone.
        """
        raise NotImplementedError


def moved(images: Tensor, changed: Tensor) -> Tensor:
    """Return ``changed`` images with the gradient of the identity (BPDA)."""
    return straight_through(images, changed.detach())
