"""The built-in small CLIP: shipped safetensors expanded to an OpenAI-layout state dict."""

from pathlib import Path

import torch

from ..utils.errors import UserError
from ..utils.io import load_tensors

ASSETS = Path(__file__).resolve().parents[1] / "assets"
VOCABULARY = 49408  # size of CLIP's byte-pair vocabulary
NAMES = ("tiny", "tiny-robust")


def load_tiny_state(name: str, assets_dir=None) -> dict[str, torch.Tensor]:
    """Return the float32 state dict of a built-in CLIP; UserError for a missing or damaged file.

    The files hold only the rows ``token_rows`` (int64) of the token embedding. The others, which
    pre-training never saw, are seeded normal noise of standard deviation 0.02, CLIP's start.
    """
    tensors = {}
    for part in dict.fromkeys(("tiny", name)):  # tiny-robust: its image tower put over tiny's
        path = Path(assets_dir or ASSETS) / f"{part}.safetensors"
        if not path.is_file():
            raise UserError(
                f"'{path}' with the weights of the built-in CLIP is missing; restore it from the "
                "repository"
            )
        tensors |= load_tensors(path)[0]
    rows = tensors.pop("token_rows").long()
    state = {name: value.float() for name, value in tensors.items()}
    kept = state["token_embedding.weight"]  # (rows, d_t)
    full = torch.randn(VOCABULARY, kept.shape[1], generator=torch.Generator().manual_seed(0)) * 0.02
    full[rows] = kept
    return state | {"token_embedding.weight": full}  # (49408, d_t)
