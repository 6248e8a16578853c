"""DEFEAT's head: patches rebuilt by a VQ-VAE (the authors' layers), fused with the image's own."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..records.threats import BACKWARDS


class Quantised(NamedTuple):
    """What the head makes of [CLS] and P = h w patches."""

    image: Tensor  # z (B, D), unit length, of [CLS]
    local: Tensor  # u (B, D), unit length, of the rebuilt patches
    patches: Tensor  # (B, D, h, w)
    rebuilt: Tensor  # (B, D, h, w)
    latent: Tensor  # (B, C, h, w)
    codes: Tensor  # (B, C, h, w), the nearest of the codebook, with gradients to it


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class QuantisedHead(nn.Module):
    """Features (B, D + 1) of tokens (B, 1 + P, D), whose cosine with texts is the fused one.

    The fused cosine a z.t + (1 - a) u.t, with a the ``share``, is that of (a z + (1 - a) u, r) and
    (t, 0), r what is missing to unit length: so the head is a feature like any other.
    """

    def __init__(self, width: int, patches: int, *, codes: int, inner: int, share: float):
        super().__init__()
        conv = nn.Conv2d
        layers = conv(width, inner, 3, 1, 1), nn.ReLU(), conv(inner, inner, 3, 1, 1)
        self.encoder = nn.Sequential(*layers, Residual(inner))
        self.codebook = nn.Embedding(codes, inner)
        self.codebook.weight.data.uniform_(-1 / codes, 1 / codes)
        last = nn.ConvTranspose2d(inner, width, 3, 1, 1)
        self.decoder = nn.Sequential(conv(inner, inner, 3, 1, 1), Residual(inner), last)
        self.pool = nn.Linear(patches, 1)
        self.share = share
        self.backward = BACKWARDS[0]  # how attacks take the gradient; answers do not depend on it

    def parts(self, tokens: Tensor) -> Quantised:
        side = math.isqrt(tokens.shape[1] - 1)
        patches = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # (B, D, h, w)
        latent = self.encoder(patches)  # (B, C, h, w)
        flat, codebook = latent.movedim(1, -1), self.codebook.weight  # (B, h, w, C), (codes, C)
        # squared distances (B, h, w, codes), but for a term that all codes share
        distances = codebook.square().sum(-1) - 2 * flat @ codebook.t()
        codes = self.codebook(distances.argmin(-1)).movedim(-1, 1)
        rebuilt = self._decoded(latent, codes, distances)
        local = self.pool(rebuilt.flatten(2))[..., 0]  # (B, D)
        unit = F.normalize(tokens[:, 0], dim=-1), F.normalize(local, dim=-1)
        return Quantised(*unit, patches, rebuilt, latent, codes)

    def _decoded(self, latent: Tensor, codes: Tensor, distances: Tensor) -> Tensor:
        answer = self.decoder(latent + (codes - latent).detach())
        if self.backward == "straight_through":
            return answer
        if self.backward == "blocked":
            return answer.detach()
        if self.backward == "soft":  # at a temperature that follows the distances' spread (ours)
            spread = distances.std(dim=-1, keepdim=True).detach() + 1e-12
            latent = ((-distances / spread).softmax(-1) @ self.codebook.weight).movedim(-1, 1)
        other = self.decoder(latent)
        return other + (answer - other).detach()

    def fused(self, parts: Quantised) -> Tensor:
        """Return features (B, D + 1) of unit length."""
        mixed = self.share * parts.image + (1 - self.share) * parts.local  # (B, D)
        rest = (1 - mixed.square().sum(-1, keepdim=True)).clamp(min=1e-12).sqrt()
        return torch.cat([mixed, rest], dim=-1)
