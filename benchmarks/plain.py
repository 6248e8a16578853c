"""What public code computes, on the same frozen backbone: the other side of a ratio.

All classes run through all 77 positions of the text tower, which is run again at every step of an
attack. What the step asks gradients of differs between codes, see :func:`pgd`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def text_features(model) -> Tensor:
    """Return unit features (K, D) through the provider's own blocks, every class on its own."""
    clip, vectors = model.clip, model.text_vectors()
    x, eot, _ = model.frame.fill(vectors[0])  # (K, L, d_t), cut after the last end token
    missing = torch.zeros(1, clip.context_length - x.shape[1], dtype=torch.long)
    padding = clip.embed_tokens(missing).to(x).expand(len(x), -1, -1)  # (K, 77 - L, d_t)
    x = clip.add_positions(torch.cat([x, padding], dim=1))  # (K, 77, d_t)
    for layer, block in enumerate(clip.model.transformer.resblocks):
        if 0 < layer < model.spec.text_depth:
            x = model.frame.replace(x, vectors[layer], slice(0, len(x)), 0)
        x = block(x, attn_mask=clip.model.attn_mask)
    return F.normalize(clip.pool_text(x, eot), dim=-1)


def pgd(loss, pixels: Tensor, start: Tensor, spec, *, fills: bool) -> Tensor:
    """Return the last iterate; ``loss`` (of images) computes all that it depends on.

    With ``fills``, ``backward`` fills the gradients of everything that is learned, through the text
    tower too (FAP, AdvPT's bank); else the images' alone are asked for (torchattacks).
    """
    delta = (start - pixels).clamp(-spec.eps, spec.eps)
    for _ in range(spec.steps):
        delta = delta.detach().requires_grad_()
        value = loss((pixels + delta).clamp(0, 1))
        if fills:
            value.backward()
        gradient = delta.grad if fills else torch.autograd.grad(value, delta)[0]
        with torch.no_grad():
            delta = (delta + spec.alpha * gradient.sign()).clamp(-spec.eps, spec.eps)
    return (pixels + delta).clamp(0, 1).detach()
