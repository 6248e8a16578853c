"""CoOp's learned context, on clean images and under adversarial training."""

from functools import cached_property

import torch

from ..backbone import cosine_logits, text_features
from ..config.keys import Key
from ..engine.trainer import register
from ..losses import mean_ce
from ..prompting.spec import in_context, of_context
from .supervised import Supervised

PROMPTS = ("onfly", "constant", "perturbed")


@register
class CoOp(Supervised):
    """Context vectors in the text input, trained on clean images (Zhou et al., IJCV 2022, 3.2)."""

    paper = "https://arxiv.org/abs/2109.01134"
    node = "COOP"
    frozen_image_tower = True
    own_keys = of_context(16, "paper")

    @classmethod
    def prompt_spec(cls, keys, clip):
        return in_context(keys, clip)


@register
class AdvCoOp(CoOp):
    """CoOp's prompts trained on attacked images, as in APT (Li et al., CVPR 2024)."""

    paper = "https://arxiv.org/abs/2403.01849"
    node = "ADVCOOP"
    own_keys = CoOp.own_keys | {
        # learned, fixed, or learned and then moved uphill at every step of the attack
        "ATTACKED_PROMPT": Key("onfly", "what the attack in training sees", choices=PROMPTS),
        "PROMPT_STEP": Key(0.01, "of `perturbed` (ours; the code has no default)", 0, 1000),
    }
    at_loss_default = "adv"

    @cached_property
    def constant(self) -> torch.Tensor:
        """Text features (K, D) of APT's fixed prompt: no full stop, underscores as they are."""
        with torch.no_grad():
            return text_features(self.clip, [f"a photo of a {name}" for name in self.classnames])

    def seen_by_attack(self, batch, rows):
        if self.keys.ATTACKED_PROMPT == "perturbed":
            return self.perturbed(batch, rows)
        if self.keys.ATTACKED_PROMPT == "constant":
            return lambda images: self.output(images, self.constant, for_attack=True)
        return super().seen_by_attack(batch, rows)

    def perturbed(self, batch, rows):
        """Return the model; its context moves up the loss after each step of the attack."""
        (context,), labels = self.model.text_vectors(), batch.labels[rows]
        chunk = self.cfg.TRAINER.ADVERSARIAL.CLASS_CHUNK

        def forward(images):
            nonlocal context
            context = context.detach().requires_grad_()
            texts = self.model.text_features(chunk, vectors=[context])  # (K, D)
            output = self.output(images, texts.detach(), for_attack=True)
            logits = cosine_logits(output.features.detach(), texts, self.clip.logit_scale)
            (uphill,) = torch.autograd.grad(mean_ce(logits, labels), context)
            context = context + self.keys.PROMPT_STEP * uphill
            return output

        return forward
