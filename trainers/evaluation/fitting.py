"""Batches as large as the memory takes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..utils.errors import UserError

OutOfMemory = torch.cuda.OutOfMemoryError  # of every device


class Fitting:
    """Calls work on a batch in parts, smaller ones once the memory has run out.

    A batch that does not fit is halved until it does, and later ones are as small. Samples never
    meet in our attacks, so that the results are the same.
    """

    def __init__(self) -> None:
        self.most: int | None = None  # images at once, once the memory has run out

    def __call__(
        self, work: Callable[..., object], where: Sequence[int], pixels: Tensor, *, alone=True
    ) -> None:
        """Call ``work(where, pixels)`` for all positions and their pixels (B, 3, H, W).

        What it leaves behind must come last, as it is called again when it fails. UserError if one
        image is too much, or a batch where the samples are not ``alone`` (torchattacks').
        """
        start, size = 0, min(self.most or len(where), len(where))
        while start < len(where):
            rows = slice(start, start + size)
            try:
                work(where[rows], pixels[rows])
                start += size
                continue
            except OutOfMemory as error:
                reason = str(error).splitlines()[0]
            # outside of the handler, which keeps the tensors alive
            if size == 1:
                raise UserError(
                    f"one image does not fit into the memory ({reason}); end other programs on "
                    "this device, or take a smaller backbone"
                )
            if not alone:
                raise UserError(
                    f"{size} images at once do not fit into the memory ({reason}), and this attack "
                    f"depends on its batch; set DATALOADER.TEST.BATCH_SIZE {size // 2}"
                )
            self.most = size = (size + 1) // 2
            print(f"note: the memory ran out; from here on {size} images at once, same results")
            if pixels.is_cuda:
                torch.cuda.empty_cache()
