"""The adversarial step that all white-box methods share.

Pixels in [0, 1] -> text features, once per step -> an attack with gradients to the perturbation
only, against the detached text features -> the method's loss -> prompts. A method chooses its
prompts (``prompt_spec``) and its loss (``loss``); everything else is here and in ``tuning``.
"""

from collections.abc import Callable
from functools import cached_property

import torch

from ..backbone.features import cosine_logits
from ..records.threats import FEATURED
from ..utils.errors import UserError
from . import device_loader as ondevice
from .alarms import collapse_warning
from .batch import Batch, Output
from .tuning import PromptTrainer

ATTACK_OBJECTIVES = ("ce", "margin", "kl", "embedding_l2")


class AdversarialTrainer(PromptTrainer):
    """Trains prompts, refiners or a tower on clean and attacked images."""

    frozen_image_tower = False  # of an instance, as its prompts say
    block_outputs = False  # whether the loss reads the image blocks' outputs
    alarm_key: str | None = None  # to change when training collapses; None where it cannot
    alarm_term = "loss_cons"  # goes to 0 when the model answers all images alike

    @classmethod
    def check_keys(cls, cfg):
        super().check_keys(cfg)
        if not cls.is_adversarial(cfg):
            return
        spec = cls.train_spec(cfg)
        if spec.eps == 0 or (spec.steps == 0 and spec.start == "zero"):
            raise UserError(
                f"{cls.__name__} trains on attacked images, but ATTACK.TRAIN with EPS "
                f"{spec.facts()['eps']}, STEPS {spec.steps} and START {spec.start} leaves them as "
                "they are; give it a size such as 1/255, or train CoOp or MaPLe on clean images"
            )
        if spec.target != "end_to_end" or spec.objective not in ATTACK_OBJECTIVES:
            raise UserError(
                f"{cls.__name__} trains on attacks through the whole model, but ATTACK.TRAIN has "
                f"target '{spec.target}' and objective '{spec.objective}'; end the command line "
                "with ATTACK.THREAT linf1, or set ATTACK.TRAIN.TARGET end_to_end and "
                "ATTACK.TRAIN.OBJECTIVE ce"
            )

    def build_data_loader(self):
        super().build_data_loader()
        if ondevice.wanted(self.cfg, self.dm.dataset.train_x, self.device):
            print("training images are kept decoded on the device and augmented there")
            loader = ondevice.DeviceLoader(self.train_loader_x, self.cfg, self.device)
            self.train_loader_x = loader

    def output(self, images, texts, *, for_attack: bool = False, model=None) -> Output:
        """Run ``model`` (default: the trained one) on images in [0, 1] against texts (K, D)."""
        keys, model, blocks = self.cfg.TRAINER.ADVERSARIAL, model or self.model, None
        with self.autocast(keys.ATTACK_PREC if for_attack else keys.PREC):
            if self.block_outputs and not for_attack:
                features, blocks = model.image_features(images, blocks=True)
            else:
                features = model.image_features(images)
        logits = cosine_logits(features, texts, self.clip.logit_scale)
        return Output(features.float(), logits, blocks)

    @cached_property
    def handmade(self) -> torch.Tensor:
        """Text features (K, D) of the hand-made prompt, for methods that consult frozen CLIP."""
        with torch.no_grad():
            return self.handmade_features()

    @torch.no_grad()
    def frozen_logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return frozen CLIP's logits (B, K) with the hand-made prompt."""
        with self.autocast(self.cfg.TRAINER.ADVERSARIAL.PREC):
            features = self.clip.encode_image(pixels)
        return cosine_logits(features, self.handmade, self.clip.logit_scale)

    def seen_by_attack(self, batch: Batch, rows: slice) -> Callable[[torch.Tensor], Output]:
        """Return the model that an attack on ``rows`` sees, once per step; its texts are fixed."""
        texts = batch.texts.detach()
        return lambda images: self.output(images, texts, for_attack=True)

    def reference(self, batch: Batch) -> torch.Tensor:
        """Return what an attack by kl (logits) or embedding_l2 (features) leads away from."""
        clean = batch.forward_clean()
        return (clean.features if self.attack_spec.objective in FEATURED else clean.logits).detach()

    def after_epoch(self):
        if self.alarm_key and self.epoch >= self.cfg.OPTIM.WARMUP_EPOCH:
            means = {name: meter.avg for name, meter in self.meter.meters.items()}
            clean, term = means.get("loss_clean"), means.get(self.alarm_term)
            if warning := collapse_warning(clean, term, len(self.classnames), self.alarm_key):
                print(f"warning: epoch {self.epoch + 1}: {warning}")
                self.alarm_key = None  # once is enough
        super().after_epoch()
