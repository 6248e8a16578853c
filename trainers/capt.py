"""CAPT: Consistency-guided Adversarial Prompt Tuning (arXiv 2405.11154).

Deep, cross-modal prompts. The supervised term is on clean images; attacked ones enter through two
consistency terms, one towards the tuned model and one towards the frozen CLIP, both on clean
images. Choices that the source does not specify are config keys, marked `ours`.
"""

from functools import cached_property

import torch

from .config.keys import Key
from .engine.adversarial import AdversarialTrainer
from .engine.trainer import register
from .engine.tuning import inner
from .losses import DIRECTIONS, capt_alpha, capt_consistency, mean_ce
from .prompting.spec import CHOICES, in_both_towers, length

ALPHAS = ("conf", "acc", "entropy", "const", "ramp")
FIXED_TRANSFORMS = {"center_crop", "instance_norm"}  # augmentation that never varies


@register
class CAPT(AdversarialTrainer):
    """CE(x) + lambda ((1 - a) KL(tuned(x) || tuned(x_adv)) + a KL(frozen(x) || tuned(x_adv)))."""

    paper = "https://arxiv.org/abs/2405.11154"
    node = "CAPT"
    alarm_key = "TRAINER.CAPT.LAMBDA"
    alarm_term = "loss_cons_train"  # the other one compares with a model that never collapses
    own_keys = dict(  # all ours, but for the form of the loss
        N_CTX=length(2, "vectors per layer and tower"),
        PROMPT_DEPTH=length(9, "layers with prompts"),
        CTX_INIT=Key("a photo of a", "the vectors start from its first words (MaPLe)"),
        COUPLING=Key("text_to_vision", "of the towers' prompts", choices=CHOICES["coupling"]),
        LAMBDA=Key(1.5, "weight of the consistency", least=0, most=1000),
        ALPHA=Key("conf", "weight of the frozen term", choices=ALPHAS),
        ALPHA_CONST=Key(0.5, "of ALPHA const; 0: tuned term alone", least=0, most=1),
        # KL(target || adversarial), or KL(adversarial || target)
        KL_DIRECTION=Key("target_first", "of the consistency", choices=DIRECTIONS),
        DETACH_TARGET=Key(False, "no gradient through the tuned model's clean answer"),
        INNER=inner(),
    )

    @classmethod
    def prompt_spec(cls, keys, clip):
        return in_both_towers(keys, coupling=keys.COUPLING)

    def loss(self, batch):
        keys, clean = self.keys, batch.forward_clean().logits  # (B, K)
        adv = batch.forward_attacked().logits  # (B, K)
        frozen = self.frozen_answers(batch)  # (B, K)
        alpha = capt_alpha(
            keys.ALPHA,
            frozen,
            clean,
            batch.labels,
            constant=keys.ALPHA_CONST,
            progress=self.epoch / self.max_epoch,
        )
        consistency, train, frz = capt_consistency(
            adv,
            clean,
            frozen,
            alpha,
            detach_target=keys.DETACH_TARGET,
            target_first=keys.KL_DIRECTION == "target_first",
        )
        loss = mean_ce(clean, batch.labels) + keys.LAMBDA * consistency.mean()
        terms = {"cons": consistency, "cons_train": train, "cons_frz": frz}
        return loss, {f"loss_{k}": v.mean() for k, v in terms.items()} | {"alpha": alpha.mean()}

    @cached_property
    def cached(self) -> dict[int, torch.Tensor]:
        """Frozen CLIP's logits (K,) by training image."""
        return {}

    def frozen_answers(self, batch):
        """Return frozen CLIP's clean logits (B, K), computed once if augmentation is fixed."""
        if batch.index is None or not set(self.cfg.INPUT.TRANSFORMS) <= FIXED_TRANSFORMS:
            return self.frozen_logits(batch.images)
        index = batch.index.tolist()
        if not all(i in self.cached for i in index):
            self.cached.update(zip(index, self.frozen_logits(batch.images), strict=True))
        return torch.stack([self.cached[i] for i in index])  # (B, K)
