"""Seeds that follow from what they are for: the same on every machine, in every order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch


def hash_seed(*parts: int | str) -> int:
    """Return a 63-bit seed, a stable hash of parts such as (seed, epoch, step, position).

    A random start of an attack hashes (seed, SHA-256 of the image file, view), so that an image
    gets the same start in whatever set, and at whatever position, it is.
    """
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:8]
    return int.from_bytes(digest, "big") >> 1


def generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """Return one generator per seed; on the CPU, so that every device draws the same."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]
