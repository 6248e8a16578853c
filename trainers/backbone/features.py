"""Text features and logits: the one place where features are normalised."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .adapter import Between, CLIPAdapter


class Prompts(NamedTuple):
    """Prompts as embeddings."""

    embeddings: torch.Tensor  # (K, L, d_t), without the positional part
    eot: torch.Tensor  # (K,) position of each end token, on the CPU
    shared: int  # length of the prefix that all classes have in common


def text_features(
    clip: CLIPAdapter,
    prompts: Prompts | torch.Tensor | list[str],
    class_chunk: int = 0,
    *,
    between: Between | None = None,
) -> torch.Tensor:
    """Encode learned prompts, token ids (K, L) or plain texts to unit-length features (K, D).

    ``between`` acts on learned prompts between the blocks, see :meth:`CLIPAdapter.encode_prompts`.
    """
    if isinstance(prompts, Prompts):
        features = clip.encode_prompts(
            prompts.embeddings,
            prompts.eot,
            shared=prompts.shared,
            class_chunk=class_chunk,
            between=between,
        )
    else:
        tokens = prompts if torch.is_tensor(prompts) else clip.tokenize(list(prompts))
        features = clip.encode_text(tokens, class_chunk=class_chunk)
    return F.normalize(features, dim=-1)


def cosine_logits(features: torch.Tensor, texts: torch.Tensor, scale: float) -> torch.Tensor:
    """Return logits (..., B, K) in float32: ``scale`` times the cosine of image and class.

    ``features`` (..., B, D) are raw, ``texts`` (..., K, D) as :func:`text_features` has them.
    """
    return scale * F.normalize(features.float(), dim=-1) @ texts.float().mT
