"""Fine-tuning of the whole image tower against fixed texts, which several baselines share."""

import copy

import torch
from torch import nn

from ..engine.adversarial import AdversarialTrainer


class TunedTower(nn.Module):
    """A trainable copy of an image tower, in evaluation mode: batch statistics stay CLIP's."""

    def __init__(self, clip, texts: torch.Tensor):
        super().__init__()
        # whatever is not the image tower is shared with the frozen model
        shared = {id(m): m for name, m in clip.model.named_children() if name != "visual"}
        copied = copy.deepcopy(clip, shared)
        object.__setattr__(self, "clip", copied)  # not a sub-module
        self.visual = copied.model.visual.requires_grad_(True)
        self.texts = texts
        self.eval()

    def train(self, mode: bool = True):
        return super().train(False)

    def image_features(self, pixels: torch.Tensor, *, blocks: bool = False):
        """Return raw features (B, D) of pixels (B, 3, H, W) in [0, 1].

        With ``blocks`` also [CLS] and patches in the space of the texts, (B, 1 + P, D).
        """
        if not blocks:
            return self.clip.encode_image(pixels)
        tokens = self.clip.encode_tokens(pixels)
        return tokens[:, 0], tokens

    def text_features(self, class_chunk: int = 0) -> torch.Tensor:
        """Return the fixed unit-length features (K, D)."""
        return self.texts


def tuned_tower(trainer) -> TunedTower:
    """Return what a trainer of the tower trains; the texts are those of the hand-made prompt."""
    trainer.frozen_image_tower = False
    return TunedTower(trainer.clip, trainer.handmade)


class FineTuned(AdversarialTrainer):
    """Trains a copy of the image tower."""

    build_trained = tuned_tower
