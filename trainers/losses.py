"""Losses as pure functions of tensors: one value per sample, no reduction, no state.

An attack ascends them; training takes their mean. All compute in float32 whatever comes in,
so that half-precision logits neither overflow nor lose the small differences an attack lives on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)_y for every sample.

    Args:
        logits: (B, K), already multiplied by the logit scale.
        labels: (B,) int64 in [0, K).

    Returns:
        (B,) float32, >= 0.

    Source: Madry et al., 2018 (arXiv 1706.06083), the loss of PGD.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{k != y} s_k - s_y: above 0 exactly where the sample is misclassified.

    Args:
        logits: (B, K) with K >= 2.
        labels: (B,) int64 in [0, K).

    Returns:
        (B,) float32.

    Source: Carlini & Wagner, 2017 (arXiv 1608.04644), f_6 with its sign turned and no floor.
    """
    if logits.shape[1] < 2:
        raise ValueError("a margin needs at least two classes")
    logits = logits.float()
    own = logits.gather(1, labels[:, None])  # (B, 1)
    others = logits.scatter(1, labels[:, None], -torch.inf)  # (B, K)
    return others.amax(dim=1) - own[:, 0]


def kl(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL( softmax(target_logits) || softmax(logits) ), the target first.

    Its gradient is exactly 0 where both arguments are equal: an attack on it needs a random start.

    Args:
        target_logits: (B, K), the reference; not detached here.
        logits: (B, K).

    Returns:
        (B,) float32, >= 0 up to rounding.

    Source: Zhang et al., 2019 (TRADES, arXiv 1901.08573), eq. 5.
    """
    log_target = F.log_softmax(target_logits.float(), dim=-1)
    log_prob = F.log_softmax(logits.float(), dim=-1)
    return F.kl_div(log_prob, log_target, reduction="none", log_target=True).sum(dim=-1)


def embedding_kl(clean: Tensor, adv: Tensor) -> Tensor:
    """KL( softmax(f(x)) || softmax(f(x')) ) over the raw embedding coordinates, temperature 1.

    No label and no text enters: the attacker moves the image embedding away from where it was.

    Args:
        clean: (B, D) un-normalised features of the clean images.
        adv: (B, D) un-normalised features of the perturbed images.

    Returns:
        (B,) float32, >= 0 up to rounding.

    Source: AdvPT (arXiv 2311.11261), the objective of the adversarial embedding bank.
    """
    return kl(clean, adv)
