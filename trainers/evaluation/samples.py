"""Labelled image files: where they are, what is in them, and their pixels in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from ..utils import distributed
from ..utils.errors import UserError
from ..utils.images import batches
from ..utils.io import sha256_file


class ImageList:
    """The images of an evaluation or a bank; every file is hashed once, however many use it.

    Args:
        items: objects with ``impath`` and ``label``, or (path, label) pairs.
        preprocess: RGB image -> (3, H, W) in [0, 1], deterministic; its attribute ``key`` names it.

    Attributes:
        paths: the N files.
        labels: the N classes.
    """

    def __init__(self, items: Sequence, preprocess: Callable[[Image.Image], torch.Tensor]):
        pairs = [(i.impath, i.label) if hasattr(i, "impath") else i for i in items]
        self.paths = [str(path) for path, _ in pairs]
        self.labels = [int(label) for _, label in pairs]
        self.preprocess = preprocess
        self._digests: dict[int, str] = {}
        self._whole: list[str] = []

    def __len__(self) -> int:
        return len(self.paths)

    def names(self) -> list:
        """Return what identifies the list on machines whose folders differ."""
        return [(Path(p).name, label) for p, label in zip(self.paths, self.labels, strict=True)]

    def digest(self, position: int) -> str:
        """Return the hex SHA-256 of one file.

        Raises:
            UserError: the file cannot be read.
        """
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
        """Return the digests of all files; all processes have to call it, and share the work."""
        if not self._whole:
            own = range(len(self))[distributed.rank() :: distributed.world()]
            with _progress(len(own), f"{title}: reading", leave=False, delay=2) as bar:
                everything = range(len(self))
                self._whole = distributed.spread(
                    lambda i: bar.update() or self.digest(i), everything
                )
            self._digests = dict(enumerate(self._whole))
        return self._whole

    def share(self, other: ImageList) -> None:
        """Take over the digests of a list of the same files; all processes have to call it."""
        self._digests = dict(enumerate(other.digests()))

    def batches(
        self, positions: Sequence[int], batch_size: int, device, title: str = ""
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield (positions, pixels (B, 3, H, W) in [0, 1]), under a title with a progress bar."""
        positions, done = list(positions), 0
        paths = [self.paths[i] for i in positions]
        with _progress(len(paths), title, delay=1) as bar:
            for pixels in batches(paths, self.preprocess, batch_size):
                yield positions[done : done + len(pixels)], pixels.to(device)
                done += len(pixels)
                bar.update(len(pixels))


def _progress(count: int, title: str, **look) -> tqdm:
    quiet = not (title and distributed.is_main())
    return tqdm(total=count, desc=title, unit="image", disable=quiet, **look)
