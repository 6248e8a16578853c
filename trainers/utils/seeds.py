"""Seeds derived from their purpose: the same on every machine, in every order."""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def hash_seed(*parts: int | str) -> int:
    """Return a 63-bit seed, a stable hash of parts such as (seed, epoch, step, position).

    A random start of an attack hashes (seed, SHA-256 of the image file, view), so that an image
    gets the same start in any set and at any position.
    """
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:8]
    return int.from_bytes(digest, "big") >> 1


def generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """Return one generator per seed; on the CPU, so that every device draws the same."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


@contextmanager
def seeded(seed: int, gpus: Sequence[int] = ()) -> Iterator[None]:
    """Seed the generators of Python, numpy, torch and ``gpus``; restore them afterwards."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(gpus):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            (torch.manual_seed if gpus else torch.default_generator.manual_seed)(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
