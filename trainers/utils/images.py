"""Images from files to pixels in [0, 1]: one preprocessing for bank and test."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from .errors import UserError

DECODERS = 2  # threads that read images while the model works


class Preprocess:
    """Dassl's test transform (resize, centre crop, to tensor): RGB image -> (3, H, W) in [0, 1].

    Its ``key`` names everything except the file that the pixels depend on, for cache keys.
    """

    def __init__(self, cfg):
        from dassl.data.transforms import build_transform  # Dassl's takes seconds

        self._transform = build_transform(cfg, is_train=False)
        size = "x".join(str(s) for s in cfg.INPUT.SIZE)
        self.key = f"dassl-test {size} {cfg.INPUT.INTERPOLATION}"

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self._transform(image)


def clip_preprocess(size: Sequence[int], interpolation: str) -> Preprocess:
    """Return CLIP's resize and centre crop to ``size``, without normalisation."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION, cfg.INPUT.TRANSFORMS = tuple(size), interpolation, ()
    with contextlib.redirect_stdout(io.StringIO()):  # Dassl prints the steps
        return Preprocess(cfg)


def load_image(path: str, preprocess: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor:
    """Decode an image file to (3, H, W) in [0, 1], as :func:`read_rgb` reads it."""
    return preprocess(read_rgb(path))


def read_rgb(path: str) -> Image.Image:
    """Decode to 8-bit RGB (16-bit grey is scaled); UserError if corrupt, no image or float."""
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers of unknown range")
            if image.mode.startswith("I"):  # 0 to 65535, which Pillow's own conversion makes white
                values = np.asarray(image).astype(np.float64).clip(0, 65535) / 257
                image = Image.fromarray(values.round().astype(np.uint8))
            return image.convert("RGB")
    except Exception as error:  # PIL raises many kinds: OSError, SyntaxError, ValueError, struct
        raise UserError(
            f"image '{path}' is corrupt or no image ({error}); replace or remove it"
        ) from error


def batches(
    paths: Sequence[str], preprocess: Callable[[Image.Image], torch.Tensor], batch_size: int
) -> Iterator[torch.Tensor]:
    """Yield (B, 3, H, W) in order, the next batch being decoded while one is in use."""
    with ThreadPoolExecutor(DECODERS) as pool:
        ahead: list = []
        for start in range(0, len(paths) + batch_size, batch_size):
            group = paths[start : start + batch_size]
            current, ahead = ahead, [pool.submit(load_image, path, preprocess) for path in group]
            if current:
                yield torch.stack([future.result() for future in current])  # (B, 3, H, W)
