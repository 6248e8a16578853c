"""Batches as large as the memory takes."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor


class Fitting:
    """Divides batches where the memory runs out: ``for batch in f.parts(...): with f: ...``.

    A part that does not fit is halved until it does, and later ones are as small. What the block
    leaves behind must come last in it. Samples never meet in our attacks: the results are the same.
    """

    most, divisible, failed = 10**9, False, False  # images at once; of the part in work

    def parts(
        self, batches: Iterable[tuple[Sequence[int], Tensor]], *, alone: bool = True
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yield parts of (positions, pixels), whole where samples are not ``alone``."""
        for where, pixels in batches:
            start = 0
            while start < len(where):
                part = slice(start, start + self.most)
                size = len(where[part])
                self.divisible = alone and size > 1
                yield where[part], pixels[part]
                start += 0 if self.failed else size
                if self.failed:
                    self.most = size // 2
                    print(f"note: the memory ran out; from here on {self.most} images at once")
                    torch.cuda.empty_cache()  # nothing happens without a GPU

    def __enter__(self) -> None:
        self.failed = False

    def __exit__(self, kind, error, trace) -> bool:
        ran_out = kind is not None and issubclass(kind, torch.cuda.OutOfMemoryError)
        self.failed = self.divisible and ran_out
        return self.failed
