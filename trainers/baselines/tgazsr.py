"""TGA-ZSR: Text-Guided Attention for zero-shot robustness (Yu et al., NeurIPS 2024).

The places that answer to the class's text stay those of frozen CLIP on the clean image: on attacked
images (refinement) and on clean ones (constraint). As in the authors' code.
"""

import torch

from ..backbone import text_features
from ..config.keys import Key, check_template
from ..engine.trainer import register
from ..engine.tuning import inner
from ..losses import attention_maps, tga_zsr
from ..prompting import templates
from .tower import FineTuned


@register
class TGAZSR(FineTuned):
    """CE(x_adv) + a ||A(x_adv) - A0(x)||_2 + b ||A(x) - A0(x)||_2, A the class's attention map."""

    paper = "https://arxiv.org/abs/2410.21802"
    node = "TGAZSR"
    block_outputs = True
    own_keys = dict(
        REFINE_WEIGHT=Key(0.08, "on attacked images (authors; with COMPLEMENT 0.10)", 0, 1000),
        KEEP_WEIGHT=Key(0.05, "on clean images (authors; with COMPLEMENT 0.07)", 0, 1000),
        COMPLEMENT=Key(False, "Comp-TGA: A times 1 - A of the text that denies the class"),
        NEGATION=Key("This is not a photo of a {}", "denies it (authors)", check=check_template),
        SIZE=Key(224, "side of the maps, whatever the images' is (authors)", 1, 4096),
        INNER=inner(),
    )

    def build_trained(self):
        with torch.no_grad():
            texts = templates.fill(self.keys.NEGATION, self.classnames)
            self.denied = text_features(self.clip, texts) if self.keys.COMPLEMENT else None
        return super().build_trained()

    def attention(self, tokens, labels):
        """Return the maps (B, SIZE * SIZE) of tokens (B, 1 + P, D) for the labels' texts."""
        maps = attention_maps(tokens, self.handmade[labels], self.keys.SIZE)
        if self.denied is None:
            return maps
        return maps * (1 - attention_maps(tokens, self.denied[labels], self.keys.SIZE))

    def loss(self, batch):
        keys, labels, adv = self.keys, batch.labels, batch.forward_attacked()
        with torch.no_grad(), self.autocast(self.cfg.TRAINER.ADVERSARIAL.PREC):
            frozen = self.clip.encode_tokens(batch.images)
        views = adv.blocks, batch.forward_clean().blocks, frozen  # (B, 1 + P, D) each
        maps = [self.attention(x, labels) for x in views]
        weights = keys.REFINE_WEIGHT, keys.KEEP_WEIGHT
        loss, refined, kept = tga_zsr(adv.logits, labels, maps, weights=weights)
        return loss.mean(), {"loss_refine": refined.mean(), "loss_keep": kept.mean()}
