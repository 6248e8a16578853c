"""What every test-time defence is: it answers for one image at a time, and forgets it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """

    keys: ClassVar[dict[str, Key]] = {}
    needs = "logits"
    on_logits = True
    random = True

    def __init__(self, victim: Any, **values):
        self.victim, self.values = victim, values
        if self.needs == "text" and victim.clip is None:
            raise UserError(
                f"test-time defence '{self.name}' needs the texts of the classes, and "
                f"{victim.name} has no CLIP inside; use ensemble, zero or et3, which take logits"
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
        own = {k: v for k, v in self.values.items() if v != self.keys[k.upper()].default}
        return {"name": self.name} | {k: v for k, v in self.values.items() if k == "views"} | own

    def answer(self, forward, images, seeds, *, attack=False):
        size = max(1, ROOM // self.copies)
        parts = zip(images.split(size), _groups(seeds, size), strict=True)
        return torch.cat([self.adapted(forward, x, own, attack) for x, own in parts])

    def adapted(self, forward: Forward, images: Tensor, seeds: Sequence[int], attack: bool):
        """Return the adapted model's logits (B, K).

        Args:
            forward: the model as it is.
            images: (B, 3, H, W) in [0, 1].
            seeds: an image's randomness comes from its own alone.
            attack: the answer is to be differentiated: what has no gradient gets a surrogate's.
        """
        raise NotImplementedError


def moved(images: Tensor, changed: Tensor) -> Tensor:
    """Return ``changed`` images with the gradient of the identity (BPDA)."""
    return straight_through(images, changed.detach())


def _groups(seeds: Sequence[int], size: int) -> list[Sequence[int]]:
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]
