"""What the field's public code computes, on the same frozen backbone: the other side of a ratio.

All classes run through all 77 positions of the text tower, which is run again at every step of an
attack; ``backward`` fills the gradients of everything that is learned, in attacks too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def whole_prompts(clip, embeddings: Tensor) -> Tensor:
    """Pad prompts (K, L, d_t), cut after the last end token, to the tower's whole length."""
    missing = clip.context_length - embeddings.shape[1]
    padding = clip.embed_tokens(torch.zeros(1, missing, dtype=torch.long, device=clip.device))
    padding = padding.to(embeddings).expand(len(embeddings), -1, -1)  # (K, 77 - L, d_t)
    return torch.cat([embeddings, padding], dim=1)


def text_features(clip, prompts, between=None) -> Tensor:
    """Return unit features (K, D) through the provider's own blocks, every class on its own."""
    x = clip.add_positions(whole_prompts(clip, prompts.embeddings))  # (K, 77, d_t)
    everything = slice(0, len(x))
    for layer, block in enumerate(clip.model.transformer.resblocks):
        if between is not None and layer:
            x = between(layer, x, everything, 0)
        x = block(x, attn_mask=clip.model.attn_mask)
    return F.normalize(clip.pool_text(x, prompts.eot), dim=-1)


def deep_text_features(model) -> Tensor:
    """Return the class features (K, D) of prompts in several layers."""
    vectors = model.text_vectors()

    def between(layer, x, rows, start):
        if layer >= model.spec.text_depth:
            return x
        return model.frame.replace(x, vectors[layer], rows, start)

    return text_features(model.clip, model.frame.fill(vectors[0]), between)


def pgd(forward, pixels: Tensor, labels: Tensor, start: Tensor, spec) -> Tensor:
    """Return the last iterate; ``forward`` (images to logits) computes all that it depends on."""
    delta = (start - pixels).clamp(-spec.eps, spec.eps)
    for _ in range(spec.steps):
        delta = delta.detach().requires_grad_()
        F.cross_entropy(forward((pixels + delta).clamp(0, 1)), labels).backward()
        with torch.no_grad():
            delta = (delta + spec.alpha * delta.grad.sign()).clamp(-spec.eps, spec.eps)
    return (pixels + delta).clamp(0, 1).detach()


def embedding_pgd(features, pixels: Tensor, reference: Tensor, start: Tensor, spec) -> Tensor:
    """As :func:`pgd`, away from the clean features (AdvPT's bank)."""
    delta = (start - pixels).clamp(-spec.eps, spec.eps)
    target = reference.log_softmax(dim=-1)
    for _ in range(spec.steps):
        delta = delta.detach().requires_grad_()
        found = features((pixels + delta).clamp(0, 1)).log_softmax(dim=-1)
        F.kl_div(found, target, log_target=True, reduction="batchmean").backward()
        with torch.no_grad():
            delta = (delta + spec.alpha * delta.grad.sign()).clamp(-spec.eps, spec.eps)
    return (pixels + delta).clamp(0, 1).detach()
