"""JPEG compression."""

import io

import numpy as np
from PIL import Image

from ..config.keys import Key
from .base import Defence, each_image, register

QUALITY = Key(75, "jpeg (ours; Guo et al., 2018, use it too)", least=1, most=95)


@register
class JPEG(Defence):
    """Encode as JPEG and decode again, with Pillow's chroma subsampling (4:2:0).

    The ``quality`` is 1 to 95, or a UserError. AdvPT's paper has no such defence; 75 as in Guo et
    al., 2018 (arXiv 1711.00117).
    """

    name = "jpeg"
    settings = ("quality",)

    def __init__(self, *, quality: int = 75):
        QUALITY.read("DEFENCE.QUALITY", quality)
        self.quality = int(quality)

    def __call__(self, images, seeds):
        return each_image(images, self._compress)

    def _compress(self, array: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        image = Image.fromarray((255 * array).round().astype(np.uint8))
        image.save(buffer, format="JPEG", quality=self.quality)
        with Image.open(buffer) as decoded:
            return np.asarray(decoded.convert("RGB"), dtype=np.float64) / 255  # (H, W, 3)
