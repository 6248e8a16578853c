"""Wavelet denoising, the first half of super-resolution as a defence."""

from __future__ import annotations

from functools import partial

from ..config import keys as config
from .base import Defence, each_image, need, register


@register
class Wavelet(Defence):
    """Soft thresholds of BayesShrink on the Haar coefficients of Y, Cb and Cr.

    Args:
        sigma: standard deviation of the noise to remove, in (0, 1]. AdvPT's public code uses 0.02,
            its paper says 0.2, the defence's own code (Mustafa et al., arXiv 1901.01677) 0.04.

    Raises:
        UserError: sigma out of range, or scikit-image or PyWavelets is missing.
    """

    name = "wavelet"

    def __init__(self, *, sigma: float = 0.02):
        config.at_least("DEFENCE.SIGMA", sigma, 1e-4, 1)
        need("wavelet denoising", "skimage", "pywt", packages="scikit-image PyWavelets")
        self.sigma = float(sigma)

    @classmethod
    def from_cfg(cls, node):
        return cls(sigma=node.SIGMA)

    def describe(self):
        return {"name": self.name, "sigma": self.sigma}

    def __call__(self, images, seeds):
        from skimage.restoration import denoise_wavelet  # slow to import

        denoise = partial(
            denoise_wavelet,
            sigma=self.sigma,
            method="BayesShrink",
            mode="soft",
            convert2ycbcr=True,
            channel_axis=-1,
        )
        return each_image(images, denoise)
