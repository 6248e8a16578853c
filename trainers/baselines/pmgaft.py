"""PMG-AFT: Pre-trained Model Guided Adversarial Fine-Tuning (Wang et al., CVPR 2024)."""

from ..config.keys import Key
from ..engine.trainer import register
from ..engine.tuning import inner
from ..losses import DIRECTIONS, pmg_aft
from .tower import FineTuned


@register
class PMGAFT(FineTuned):
    """CE(x_adv) + a KL(p0(x_adv) || p(x_adv)) + b KL(p(x) || p(x_adv)), p0 frozen CLIP."""

    paper = "https://arxiv.org/abs/2401.04350"
    node = "PMGAFT"
    alarm_key = "TRAINER.PMGAFT.CLEAN_WEIGHT"
    own_keys = dict(
        GENERAL_WEIGHT=Key(1.0, "of the divergence from frozen CLIP (paper)", least=0, most=1000),
        CLEAN_WEIGHT=Key(1.0, "of that from the clean answer (paper)", least=0, most=1000),
        # as one of the authors' two versions (a53fdd8), and AGFT's harness; 4baf55d is the reverse
        KL_DIRECTION=Key("target_first", "of both divergences", choices=DIRECTIONS),
        INNER=inner(),
    )

    def loss(self, batch):
        keys, adv = self.keys, batch.forward_attacked().logits  # (B, K)
        views = adv, batch.forward_clean().logits, self.frozen_logits(batch.adversarial)
        weights = keys.GENERAL_WEIGHT, keys.CLEAN_WEIGHT
        first = keys.KL_DIRECTION == DIRECTIONS[0]
        loss, guide, gap = pmg_aft(*views, batch.labels, weights=weights, target_first=first)
        return loss.mean(), {"loss_general": guide.mean(), "loss_cons": gap.mean()}
