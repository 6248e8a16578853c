"""Adversarial images kept on disk as an attack finds them: one safetensors file per batch."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..utils.errors import UserError
from ..utils.io import load_tensors, save_tensors


class SavedBatch(NamedTuple):
    """Images of one file."""

    images: Tensor  # (B, 3, H, W) float32 in [0, 1], the adversarial images
    labels: Tensor  # (B,) int64
    right: Tensor  # (B,) bool, whether the attacked model was still right
    paths: list[str]  # the clean images' files
    attack: dict  # as in the run's record


class SavedImages:
    """Writes the files ``00000.safetensors``, ... of one attack into a ``folder`` of its own.

    Files of another ``key`` are never continued; ``attack`` is a description for readers.
    """

    def __init__(self, folder, key: str, attack: dict):
        self.folder, self.key, self.attack = Path(folder), key, attack
        self.written = 0  # files

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.written:05d}.safetensors"

    def resume(self, samples: int) -> bool:
        """Keep the files of the first ``samples`` samples, and remove what was written after them.

        Returns False if they do not hold these samples exactly: then nothing is left here, and the
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

    def add(self, images: Tensor, labels: Tensor, right: Tensor, paths: list[str]) -> None:
        """Write one batch; see :class:`SavedBatch`."""
        tensors = {"images": images.float(), "labels": labels, "right": right}
        facts = {"key": self.key, "attack": self.attack, "paths": list(paths)}
        save_tensors(self._path, tensors, facts)
        self.written += 1


def read_saved(folder) -> Iterator[SavedBatch]:
    """Yield one attack's batches in order; UserError if any is missing or fails its checksum."""
    paths = sorted(Path(folder).glob("*.safetensors"))
    if [path.stem for path in paths] != [f"{i:05d}" for i in range(len(paths))] or not paths:
        raise UserError(
            f"'{folder}' holds no adversarial images, or not all of them; give a folder that an "
            "evaluation with TEST.SAVE_ADV True has written, such as RUN/adversarial/ATTACK"
        )
    for path in paths:
        tensors, facts = load_tensors(path)
        if not {"images", "labels", "right"} <= tensors.keys():
            raise UserError(f"'{path}' holds no adversarial images of this project")
        images = tensors["images"]
        if "levels" in facts and not images.is_floating_point():  # an older form
            images = images.float() / facts["levels"]
        yield SavedBatch(
            images, tensors["labels"], tensors["right"], facts["paths"], facts["attack"]
        )
