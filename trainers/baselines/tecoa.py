"""TeCoA: text-guided contrastive adversarial training (Mao et al., ICLR 2023).

The image side is trained against fixed text features: either visual prompt tokens are added, or
the whole image tower is fine-tuned.
"""

from ..config.keys import Key
from ..engine.trainer import register
from ..prompting import PromptSpec
from ..prompting.spec import length
from .supervised import Supervised
from .tower import tuned_tower


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
        return tuned_tower(self)
