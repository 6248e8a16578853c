"""One training batch as a method's loss sees it: plain tensors, and calls that run the model."""

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..attacks import gradient_attack, objective_for
from ..records.threats import FEATURED, REFERENCED
from ..utils.seeds import hash_seed


class Output(NamedTuple):
    """The model's output on images."""

    features: Tensor  # (B, D), raw
    logits: Tensor  # (B, K) float32
    blocks: Any  # of all image blocks (B, N, d_v), or what else the model has for the method


class Batch:
    """A training batch; ``forward_*`` and ``attack`` run the model."""

    def __init__(self, trainer, batch: dict):
        self.trainer, device = trainer, trainer.device
        # (B, 3, H, W) pixels in [0, 1], of AdvPT's bank stored features (B, D); labels (B,)
        self.images, self.labels = batch["img"].to(device), batch["label"].to(device)
        self.index = batch.get("index")  # (B,) positions in the data set, None where unknown
        self.texts = trainer.encode_texts()  # (K, D) unit length, with gradients, once per step
        self.outputs: dict[str, Output] = {}  # what has been computed so far: clean, adv
        self.attacked = False  # whether an attack was run

    @cached_property
    def frozen(self) -> Tensor:
        """Frozen CLIP's raw features (B, D) of the clean images, without gradient."""
        with torch.no_grad(), self.trainer.autocast(self.trainer.cfg.TRAINER.ADVERSARIAL.PREC):
            return self.trainer.clip.encode_image(self.images)

    def forward(self, images: Tensor) -> Output:
        """Run the model on images (B, 3, H, W) in [0, 1], with gradients to the prompts."""
        return self.trainer.output(images, self.texts)

    def forward_clean(self) -> Output:
        """Return the model's output on the clean images, computed once."""
        if "clean" not in self.outputs:
            self.outputs["clean"] = self.forward(self.images)
        return self.outputs["clean"]

    def forward_attacked(self) -> Output:
        """Attack the images and return the model's output on the result, computed once."""
        if "adv" not in self.outputs:
            self.adversarial = self.attack()  # (B, 3, H, W)
            self.outputs["adv"] = self.forward(self.adversarial)
        return self.outputs["adv"]

    def attack(self, rows: slice = slice(None)) -> Tensor:
        """Return adversarial versions of the images in ``rows``; gradients reach pixels only."""
        self.attacked = True
        trainer, spec = self.trainer, self.trainer.attack_spec
        seen, featured = trainer.seen_by_attack(self, rows), spec.objective in FEATURED
        reference = trainer.reference(self)[rows] if spec.objective in REFERENCED else None

        def forward(images: Tensor) -> Tensor:
            output = seen(images)
            return output.features if featured else output.logits

        step = (max(trainer.cfg.SEED, 0), trainer.epoch, trainer.batch_idx)
        seeds = [hash_seed(*step, position) for position in range(len(self.labels))]
        loss = objective_for(spec, forward, labels=self.labels[rows], reference=reference)
        attack = gradient_attack(loss, spec)
        return attack.run(self.images[rows], seeds[rows], scored=False).images


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of right predictions in percent."""
    return 100 * (logits.argmax(1) == labels).float().mean()
