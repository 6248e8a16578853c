"""TeCoA: text-guided contrastive adversarial training (Mao et al., ICLR 2023).

The image side is trained against fixed text features: either visual prompt tokens are added, or
the whole image tower is fine-tuned.
"""

import copy

import torch
from torch import nn

from ..config.keys import Key
from ..engine.trainer import register
from ..prompting import PromptSpec
from ..prompting.spec import length
from .supervised import Supervised


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

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return raw features (B, D) of pixels (B, 3, H, W) in [0, 1]."""
        return self.clip.encode_image(pixels)

    def text_features(self, class_chunk: int = 0) -> torch.Tensor:
        """Return the fixed unit-length features (K, D)."""
        return self.texts


@register
class TeCoA(Supervised):
    """Adversarial CE against the hand-made prompt; trains visual tokens or the image tower."""

    paper = "https://arxiv.org/abs/2212.07016"
    node = "TECOA"
    at_loss_default = "adv"
    own_keys = dict(
        VARIANT=Key("prompt", "visual tokens, or the tower", choices=("prompt", "finetune")),
        N_CTX=length(16, "visual tokens (ours)"),
        PROMPT_DEPTH=length(1, "layers with tokens of their own (ours)"),
    )

    @classmethod
    def prompt_spec(cls, keys, clip):
        if keys.VARIANT == "finetune":
            return PromptSpec()
        return PromptSpec(vision=keys.N_CTX, vision_depth=keys.PROMPT_DEPTH)

    def build_trained(self):
        if self.keys.VARIANT == "prompt":
            return super().build_trained()
        self.frozen_image_tower = False
        return TunedTower(self.clip, self.handmade)
