"""R-TPT: robust test-time prompt tuning (Sheng et al., CVPR 2025)."""

import torch

from ..config.keys import Key
from ..utils.errors import UserError
from .base import register
from .tuning import Tuned, keys_of_tuning
from .views import entropy, weighted


@register
class RTPT(Tuned):
    """Minimises each chosen view's own entropy; answers by a mean weighted by likeness.

    A view's weight is the mean cosine to its NEAREST nearest views. The authors' code counts a
    view among its own neighbours where float32 rounds its cosine with itself below 1;
    ``COUNT_ITSELF`` does so for all of them.
    """

    name = "rtpt"
    keys = keys_of_tuning(0.1, "authors' code") | {
        "NEAREST": Key(20, "views to compare a view with (authors' code)", least=1, most=4096),
        "SHARPNESS": Key(0.01, "temperature of the weights (authors' code)", least=1e-6, most=100),
        "COUNT_ITSELF": Key(False, "a view is among its own nearest"),
    }

    def __init__(self, victim, **values):
        super().__init__(victim, **values)
        others = self.copies - 1 + self.count_itself
        if self.nearest > others:
            raise UserError(
                f"TESTTIME.RTPT.NEAREST is {self.nearest}, but {self.copies} views leave {others} "
                "to compare one with; lower it or raise TESTTIME.VIEWS"
            )

    def loss(self, logits, texts):
        return entropy(logits).mean(1)

    def predict(self, features, texts):
        likeness = features @ features.mT  # (B, V, V)
        if not self.count_itself:
            likeness = likeness - 2 * torch.eye(self.copies, device=likeness.device)
        near = likeness.topk(self.nearest).values.mean(-1)  # (B, V)
        return weighted((near / self.sharpness).softmax(1), self.score(features, texts))
