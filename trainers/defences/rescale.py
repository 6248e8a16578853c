"""Random resizing and padding."""

import torch
from torch import Tensor
from torch.nn import functional

from ..config.keys import Key
from ..utils.seeds import generators
from .base import Defence, register

SCALE = Key(0.903, "rescale: least size (299/331, Xie et al.)", least=0.1, most=0.999)
PAD = Key(0.0, "rescale: grey value around the image (Xie et al.)", least=0, most=1)


@register
class Rescale(Defence):
    """Shrink each image by a random amount and put it at a random place on a plain canvas.

    Xie et al., 2018 (arXiv 1711.01991) enlarge 299 pixels to a size from 299 to 330 and pad to
    331, which their model takes. CLIP's input size is fixed, so here the canvas has the image's
    own size and the content shrinks by the same ratios: one bilinear resampling instead of two
    (our choice; AdvPT's paper gives no settings).

    Args:
        scale: the smallest size as a part of the image's, in [0.1, 1); the largest is 1 pixel less
            than the image.
        pad: grey value of the canvas, in [0, 1]. A UserError for either out of range.
    """

    name = "rescale"
    settings = ("scale", "pad")
    random = True
    differentiable = True

    def __init__(self, *, scale: float = 0.903, pad: float = 0.0):
        SCALE.read("DEFENCE.SCALE", scale)
        PAD.read("DEFENCE.PAD", pad)
        self.scale, self.pad = float(scale), float(pad)

    def __call__(self, images, seeds):
        if not len(images):
            return images
        pairs = zip(images, generators(seeds), strict=True)
        return torch.stack([self._place(image, generator) for image, generator in pairs])

    def _place(self, image: Tensor, generator: torch.Generator) -> Tensor:
        def draw(low: int, high: int) -> int:  # from low to high, both included
            return int(torch.randint(low, high + 1, (), generator=generator))

        height, width = image.shape[1:]
        largest = max(height - 1, 1)
        tall = draw(min(max(round(self.scale * height), 1), largest), largest)
        wide = min(max(round(width * tall / height), 1), width)
        top, left = draw(0, height - tall), draw(0, width - wide)
        small = functional.interpolate(
            image[None], size=(tall, wide), mode="bilinear", align_corners=False
        )[0]  # (3, tall, wide)
        around = (left, width - wide - left, top, height - tall - top)
        return functional.pad(small, around, value=self.pad)  # (3, H, W)
