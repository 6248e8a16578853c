"""Labelled images, in files or as tensors: what is in them, and their pixels in batches."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..utils import progress
from ..utils.errors import UserError
from ..utils.images import batches
from ..utils.io import sha256_file

AS_GIVEN: Any = SimpleNamespace(key="tensors as given")  # a preprocessing that is never called


class ImageList:
    """The images of an evaluation or a bank; every file is hashed once, however many use it.

    The ``items`` are objects with ``impath`` and ``label``, or (path, label) pairs. ``preprocess``
    makes (3, H, W) in [0, 1] of an RGB image, without randomness; its attribute ``key`` names it.
    """

    pinned = False  # whether batches reach a GPU through pinned memory

    def __init__(self, items: Sequence, preprocess: Callable[[Image.Image], torch.Tensor]):
        pairs = [(i.impath, i.label) if hasattr(i, "impath") else i for i in items]
        self.paths = [str(path) for path, _ in pairs]
        self.labels = [int(label) for _, label in pairs]
        self.preprocess = preprocess
        self._digests: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def names(self) -> list:
        """Return what identifies the list on machines whose folders differ."""
        return [(Path(p).name, label) for p, label in zip(self.paths, self.labels, strict=True)]

    def digest(self, position: int) -> str:
        """Return the hex SHA-256 of one file; UserError if it cannot be read."""
        if position not in self._digests:
            path = self.paths[position]
            try:
                self._digests[position] = sha256_file(path)
            except OSError as error:
                raise UserError(
                    f"cannot read image '{path}' ({error.strerror}); check the data set's folder"
                ) from error
        return self._digests[position]

    def digests(self, title: str = "images") -> list[str]:
        """Return the digests of all files."""
        if len(self._digests) < len(self):
            with progress.bar(len(self), f"{title}: reading", leave=False, delay=2) as bar:
                for i in range(len(self)):
                    self.digest(i)
                    bar.update()
        return [self.digest(i) for i in range(len(self))]

    def share(self, other: "ImageList") -> None:
        """Take over the digests of a list of the same files."""
        self._digests = dict(enumerate(other.digests()))

    def _onto(self, device, pixels: torch.Tensor) -> torch.Tensor:
        if self.pinned and torch.device(device).type == "cuda":
            return pixels.pin_memory().to(device, non_blocking=True)
        return pixels.to(device)

    def batches(
        self, positions: Sequence[int], batch_size: int, device, title: str = ""
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield (positions, pixels (B, 3, H, W) in [0, 1]), under a title with a progress bar."""
        positions, done = list(positions), 0
        paths = [self.paths[i] for i in positions]
        with progress.bar(len(paths), title, delay=1) as bar:
            for pixels in batches(paths, self.preprocess, batch_size):
                yield positions[done : done + len(pixels)], self._onto(device, pixels)
                done += len(pixels)
                bar.update(len(pixels))


class PixelList(ImageList):
    """Images that are tensors already; all of them are read once, for labels and digests.

    The ``source`` holds N pairs of pixels (3, H, W) in [0, 1] and a label, such as a ``Dataset`` of
    torch; position i always gives the same pair. UserError: another type, shape or range, or an
    image that changes between two readings.
    """

    def __init__(self, source):
        self.source = source
        digests, labels, first = [], [], None
        with progress.bar(len(source), "images: reading", leave=False, delay=2) as bar:
            for i in range(len(source)):
                pixels, label = self._pair(i)
                first = pixels if first is None else first
                if pixels.shape != first.shape:
                    raise UserError(
                        f"image {i} has shape {tuple(pixels.shape)}, image 0 "
                        f"{tuple(first.shape)}; resize and crop them to one size"
                    )
                digests.append(_digest(pixels))
                labels.append(label)
                bar.update()
        if labels and _digest(self._pair(0)[0]) != digests[0]:
            raise UserError(
                "image 0 is another one at the second reading; give the data set its test "
                "transform, without random crops or flips"
            )
        super().__init__([(f"image {i}", label) for i, label in enumerate(labels)], AS_GIVEN)
        self._digests = dict(enumerate(digests))

    def _pair(self, i: int) -> tuple[torch.Tensor, int]:
        try:
            pixels, label = self.source[i]
            label = int(label)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"entry {i} of the images is no pair of pixels (3, H, W) and a label, a whole "
                f"number ({error})"
            ) from error
        if not torch.is_tensor(pixels) or pixels.dim() != 3 or len(pixels) != 3:
            found = tuple(pixels.shape) if hasattr(pixels, "shape") else type(pixels).__name__
            raise UserError(
                f"image {i} is {found}, expected a tensor (3, H, W) in [0, 1]; give the data set "
                "torchvision's ToTensor as its transform"
            )
        if not pixels.is_floating_point():
            raise UserError(
                f"image {i} is {pixels.dtype}, expected floats in [0, 1]: divide by 255"
            )
        pixels = pixels.detach().to("cpu", torch.float32)
        low, high = (value.item() for value in pixels.aminmax())
        if not (low >= 0 and high <= 1):  # also refuses NaN
            raise UserError(
                f"image {i} has pixels from {low:.3g} to {high:.3g}, expected [0, 1]; leave "
                "Normalize out of the transform and give normalize=(mean, std), which is then "
                "part of the model that is attacked"
            )
        return pixels, label

    def batches(self, positions, batch_size, device, title=""):
        with progress.bar(len(positions), title, delay=1) as bar:
            for start in range(0, len(positions), batch_size):
                where = list(positions[start : start + batch_size])
                pixels = torch.stack([self._pair(i)[0] for i in where])  # (B, 3, H, W)
                yield where, self._onto(device, pixels)
                bar.update(len(where))


def _digest(pixels: torch.Tensor) -> str:
    values = np.ascontiguousarray(pixels.numpy())
    return hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).hexdigest()
