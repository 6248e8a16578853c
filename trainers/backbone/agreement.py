"""Check a new adapter by running its towers both whole and block by block.

A text tower may look ahead, mask its padding or pool in its own way; an image tower may do more
between its blocks than its parts show. The structure reveals most of it. Here two texts and one
image are run through the provider's encoder and block by block; if the outputs differ, the
block-wise path is disabled. Where all blocks are of one kind a few are enough: two in the text
tower (the second sees what the first let the prefix see), one in the image tower.
"""

import contextlib

import torch
from torch import nn

from ..utils.errors import UserError
from ..utils.precision import exact_products

TOLERANCE = 1e-4  # of the largest value; rounding stays below 1e-5


@torch.no_grad()
def verify(clip) -> None:
    """Try the towers of a new adapter and correct what their structure promised.

    Sets ``causal`` (cutting and sharing the prefix are exact), ``takes_prompts`` (the text tower
    can be run from embeddings) and ``is_vit`` (the image tower can be run block by block).
    UserError if the towers disagree because weights are NaN or infinite.
    """
    with torch.autocast(clip.device.type, enabled=False), exact_products():
        promised = clip.causal, clip.takes_prompts, clip.is_vit
        if clip.causal and not _texts_agree(clip):
            clip.causal = False
        if clip.takes_prompts and not clip.causal:
            clip.takes_prompts = _texts_agree(clip)
        if clip.is_vit and not _images_agree(clip):
            clip._set_image_face(None)
    if (clip.causal, clip.takes_prompts, clip.is_vit) == promised:
        return
    for name, value in clip.model.named_parameters():  # NaN agrees with nothing
        if not value.isfinite().all():
            raise UserError(
                f"the weights of backbone {clip.name} hold NaN or infinite values (tensor "
                f"'{name}'); fetch them again or choose others"
            )


@contextlib.contextmanager
def _shortened(home: nn.Module, name: str, count: int):
    """Temporarily leave only the first blocks in a tower whose blocks are all of one kind."""
    blocks = getattr(home, name)
    if len({type(block) for block in blocks}) == 1:
        setattr(home, name, blocks[:count])
    try:
        yield
    finally:
        setattr(home, name, blocks)


def _agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def _texts_agree(clip) -> bool:
    """Return True if prompts given as embeddings equal the same texts read by the provider."""
    try:
        eot = clip._eos_id if clip._pool_type == "eos" else clip.vocabulary - 1
        ids = torch.zeros(2, clip.context_length, dtype=torch.long, device=clip.device)  # (2, L)
        for row, words in zip(ids, ([4, 5, 6], [4, 5, 7, 8, 9]), strict=True):
            text = torch.tensor([3, *(w for w in words if w != eot), eot])
            row[: len(text)] = text
        with _shortened(clip._text.transformer, "resblocks", 2):
            found = clip.encode_prompts(clip.embed_tokens(ids), clip.end_of_text(ids), shared=3)
            return _agree(found, clip.provider_text(ids))
    except Exception:  # a tower of another make may fail anywhere: it is not used this way
        return False


def _images_agree(clip) -> bool:
    """Return True if the blocks in turn equal the tower, and accept one token more."""
    size = clip.resolution
    pixels = torch.linspace(0, 1, 3 * size * size, device=clip.device).view(1, 3, size, size)
    try:
        with _shortened(*clip._image_face.home, 1):
            tokens = clip.patch_tokens(pixels)  # (1, N, d_v)
            clip.image_blocks[0](torch.cat([tokens, tokens[:, :1]], dim=1))
            for block in clip.image_blocks:
                tokens = block(tokens)
            expected = clip.provider_image(pixels)
            ways = clip.pool_image(tokens), clip.encode_image(pixels)
            return all(_agree(found, expected) for found in ways)
    except Exception:  # as above
        return False
