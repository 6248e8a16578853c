"""Adversarial images kept on disk, shard by shard, as an attack finds them.

A pixel is an int16 in steps of 1/128 of 1/255, rounded towards the clean pixel: 8-bit images and
balls of whole steps are met exactly, smaller changes to 0.8 % of 1/255, and nothing ever leaves
its ball or [0, 1]. A shard on which that rounding would change an answer holds float32 instead.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.errors import UserError
from ..utils.io import load_tensors, save_tensors

LEVELS = 255 * 128  # the largest multiple of 255 that doubles in int16
_EXACT = 0.01  # of a level: float32's rounding of pixels that are meant to lie on one
_SLACK = {torch.inf: 1e-6, 2: 1e-5}  # of the ball's radius, as in the attacks' own checks


class Shard(NamedTuple):
    """Images of one file.

    Attributes:
        images: (B, 3, H, W) float32 in [0, 1], the adversarial images.
        labels: (B,) int64; ``right``: (B,) bool, whether the attacked model was still right.
        paths: the clean images' files.
        attack: the attack, as in the run's record.
    """

    images: Tensor
    labels: Tensor
    right: Tensor
    paths: list[str]
    attack: dict


def encode(images: Tensor, clean: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] as int16, rounded towards ``clean``."""
    levels = images.double() * LEVELS
    down = (levels + _EXACT).floor()
    return torch.where(images >= clean, down, (levels - _EXACT).ceil()).to(torch.int16)


def decode(values: Tensor) -> Tensor:
    """Return float32 images in [0, 1] of int16 values; float32 ones come back as they are."""
    return values if values.is_floating_point() else values.float() / LEVELS


def _no_farther(read: Tensor, images: Tensor, clean: Tensor) -> bool:
    """Tell whether every image that was read back is as close to its clean one as before."""
    now, before = (read - clean).flatten(1), (images - clean).flatten(1)
    return all(
        bool((now.norm(p, dim=1) <= before.norm(p, dim=1) + slack).all())
        for p, slack in _SLACK.items()
    )


class Shards:
    """Writes the shards ``00000.safetensors``, ... of one attack.

    Args:
        folder: of this attack alone.
        key: of the evaluation; shards with another one are never continued.
        attack: its description, for readers.
    """

    def __init__(self, folder, key: str, attack: dict):
        self.folder, self.key, self.attack = Path(folder), key, attack
        self.written = 0  # shards

    def resume(self, samples: int) -> bool:
        """Keep the shards of the first ``samples`` samples, and drop what was written after them.

        Returns:
            False where they do not cover these samples exactly: then nothing is left here, and the
            attack has to be evaluated from its start.
        """
        covered, self.written = 0, 0
        while samples > covered and self._path.is_file():
            tensors, facts = load_tensors(self._path)
            if facts.get("key") != self.key:
                break
            covered += len(tensors["labels"])
            self.written += 1
        if covered != samples:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.written = 0
        for path in self.folder.glob("*.safetensors"):
            if int(path.stem) >= self.written:
                path.unlink()
        return covered == samples

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.written:05d}.safetensors"

    def add(
        self,
        images: Tensor,
        clean: Tensor,
        labels: Tensor,
        right: Tensor,
        paths: list[str],
        logits: Callable[[Tensor], Tensor],
    ) -> None:
        """Write one shard.

        Args:
            images, clean: (B, 3, H, W) in [0, 1].
            labels, right: (B,).
            logits: of the model under test (B, K); reading back must not change its answers.
        """
        values = encode(images, clean)
        read = decode(values)
        with torch.no_grad():
            same = torch.equal(logits(read).argmax(1), logits(images).argmax(1))
        if not (same and _no_farther(read, images, clean)):
            values = images.float()
        tensors = {"images": values, "labels": labels, "right": right}
        facts = {"key": self.key, "attack": self.attack, "paths": list(paths), "levels": LEVELS}
        save_tensors(self._path, tensors, facts)
        self.written += 1


def read_shards(folder) -> Iterator[Shard]:
    """Yield the shards of one attack in order; each is checked against its checksum.

    Raises:
        UserError: there are none, one is missing, or one is damaged.
    """
    paths = sorted(Path(folder).glob("*.safetensors"))
    if [path.stem for path in paths] != [f"{i:05d}" for i in range(len(paths))] or not paths:
        raise UserError(
            f"'{folder}' holds no adversarial images, or not all of them; give a folder that an "
            "evaluation with TEST.SAVE_ADV True has written, such as RUN/adversarial/ATTACK"
        )
    for path in paths:
        tensors, facts = load_tensors(path)
        if facts.get("levels") != LEVELS:
            raise UserError(f"'{path}' holds no adversarial images of this version")
        yield Shard(
            decode(tensors["images"]),
            tensors["labels"],
            tensors["right"],
            facts["paths"],
            facts["attack"],
        )
