"""Wavelet denoising, and super-resolution after it (Mustafa et al., 2019, arXiv 1901.01677)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ..config.keys import Key
from .base import Defence, each_image, need, register

SIGMA = Key(0.02, "wavelet, super_resolution: noise level (author; paper 0.2)", least=1e-4, most=1)


@register
class Wavelet(Defence):
    """Soft thresholds of BayesShrink on the Haar coefficients of Y, Cb and Cr.

    ``sigma`` is the standard deviation of the noise to remove, in (0, 1]. AdvPT's public code uses
    0.02, its paper says 0.2, the defence's own code (Mustafa et al., arXiv 1901.01677) 0.04.
    UserError: sigma out of range, or scikit-image or PyWavelets is missing.
    """

    name = "wavelet"
    settings = ("sigma",)

    def __init__(self, *, sigma: float = 0.02):
        SIGMA.read("DEFENCE.SIGMA", sigma)
        need("wavelet denoising", "skimage", "pywt", packages="scikit-image PyWavelets")
        self.sigma = float(sigma)

    def __call__(self, images, seeds):
        from skimage.restoration import denoise_wavelet  # slow to import

        colours = {"convert2ycbcr": True, "channel_axis": -1}
        rule = {"sigma": self.sigma, "method": "BayesShrink", "mode": "soft"}
        return each_image(images, partial(denoise_wavelet, **rule, **colours))


def bicubic(images: Tensor) -> Tensor:
    """Double the size of images (B, 3, H, W) by interpolation alone."""
    return functional.interpolate(images, scale_factor=2, mode="bicubic", align_corners=False)


@register
class SuperResolution(Defence):
    """Denoise, enlarge by a network, and shrink to the model's input size.

    AdvPT's public code stops after the denoising. The network is any callable, given in Python.
    Without one, bicubic interpolation takes its place, which adds little to the wavelets (our
    choice).

    Args:
        sigma: see :class:`Wavelet`.
        network: images (B, 3, H, W) in [0, 1] -> (B, 3, s H, s W); differentiable for an exact
            gradient of its part.
        identity: names the network in the record and in keys.
    """

    name = "super_resolution"
    settings = ("sigma",)

    def __init__(
        self,
        *,
        sigma: float = 0.02,
        network: Callable[[Tensor], Tensor] = bicubic,
        identity: str = "",
    ):
        self.wavelet = Wavelet(sigma=sigma)
        self.sigma = self.wavelet.sigma
        self.network = network
        self.identity = identity or getattr(network, "__name__", type(network).__name__)

    def describe(self):
        return super().describe() | {"network": self.identity}

    def __call__(self, images, seeds):
        with torch.no_grad():
            return self._enlarge(self.wavelet(images, seeds))

    def straight_through(self, images, seeds):
        """BPDA through the wavelets, the exact gradient through the network."""
        return self._enlarge(self.wavelet.straight_through(images, seeds))

    def _enlarge(self, images: Tensor) -> Tensor:
        if isinstance(self.network, torch.nn.Module):
            self.network.to(images.device)
        large = self.network(images).clamp(0, 1)  # (B, 3, s H, s W)
        small = functional.interpolate(
            large, size=images.shape[2:], mode="bicubic", align_corners=False, antialias=True
        )  # (B, 3, H, W)
        return small.clamp(0, 1)
