"""The built-in small CLIP: shipped safetensors expanded to an OpenAI-layout state dict."""

from __future__ import annotations

from pathlib import Path

import torch

from ..utils.errors import UserError
from ..utils.io import load_tensors

ASSETS = Path(__file__).resolve().parents[1] / "assets"
VOCABULARY = 49408  # size of CLIP's byte-pair vocabulary
NAMES = ("tiny", "tiny-robust")


def expand_tiny(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Expand shipped tensors to a full float32 state dict.

    ``token_embedding.weight`` holds only the rows listed in ``token_rows`` (int64 ids); the others,
    which pre-training never saw, are filled with seeded normal noise of standard deviation 0.02,
    the value at CLIP's initialisation.
    """
    state = {k: v.float() for k, v in tensors.items() if k != "token_rows"}
    if "token_rows" in tensors:
        kept = state["token_embedding.weight"]  # (rows, d_t)
        noise = torch.Generator().manual_seed(0)
        full = torch.randn(VOCABULARY, kept.shape[1], generator=noise) * 0.02
        full[tensors["token_rows"].long()] = kept
        state["token_embedding.weight"] = full  # (49408, d_t)
    return state


def load_tiny_state(name: str, assets_dir=None) -> dict[str, torch.Tensor]:
    """Return the state dict of a built-in CLIP; UserError for a missing or damaged file."""
    state = {}
    for part in dict.fromkeys(("tiny", name)):
        path = Path(assets_dir or ASSETS) / f"{part}.safetensors"
        if not path.is_file():
            raise UserError(
                f"'{path}' with the weights of the built-in CLIP is missing; restore it from the "
                "repository"
            )
        state |= expand_tiny(load_tensors(path)[0])
    return state
