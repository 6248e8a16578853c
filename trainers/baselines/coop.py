"""CoOp's learned context, on clean images and under adversarial training."""

from ..engine.trainer import register
from ..prompting.spec import in_context, of_context
from .supervised import Supervised


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
    own_keys = CoOp.own_keys
    at_loss_default = "adv"
