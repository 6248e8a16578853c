"""The adversarial step that all white-box methods share.

Pixels in [0, 1] -> text features, once per step -> an attack with gradients to the perturbation
only, against the detached text features -> the method's loss -> prompts. A method chooses its
prompts (``prompt_spec``) and its loss (``loss``); everything else is here.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import MetricMeter, set_random_seed

from ..attacks import AttackSpec, NotFinite, gradient_attack, objective_for, specs_from_cfg
from ..attacks.cost import attack_forwards
from ..config.keys import PRECISIONS, add_defaults, at_least, one_of
from ..losses import mean_ce
from ..prompting.prompted import PromptedCLIP, PromptSpec
from ..utils import distributed
from ..utils.errors import UserError
from ..utils.versions import grad_scaler
from . import device_loader as ondevice
from .device_loader import DeviceLoader
from .trainer import RobustTrainer

ATTACK_PRECISIONS = ("fp32", "bf16")  # float16 gradients underflow to exactly 0
ATTACK_OBJECTIVES = ("ce", "margin", "kl")
COLLAPSED_LOSS = 0.9  # of ln K
COLLAPSED_CONSISTENCY = 0.02  # nats


class NonFiniteLoss(UserError, RuntimeError):
    """Training stopped at an infinite or NaN loss or gradient; no checkpoint was touched."""


class Output(NamedTuple):
    """What the model says of images.

    Attributes:
        features: (B, D) raw image features.
        logits: (B, K) float32.
        blocks: outputs (B, N, d_v) of all image blocks, where the method asks for them.
    """

    features: torch.Tensor
    logits: torch.Tensor
    blocks: list[torch.Tensor] | None


class Batch:
    """One training batch as a method's loss sees it; what is never asked for is never computed.

    Attributes:
        pixels: (B, 3, H, W) in [0, 1]; ``labels``: (B,); ``index``: positions in the data set.
        texts: (K, D) unit-length text features with gradients.
        attacked: whether an attack was run.
        share: which rows these are of a batch of ``size``; of several processes, each has its own.
    """

    def __init__(self, trainer: AdversarialTrainer, pixels, labels, texts, seeds, index, size):
        self.trainer, self.pixels, self.labels, self.texts = trainer, pixels, labels, texts
        self.seeds, self.index, self.attacked = seeds, index, False
        self.size, self.share = size, distributed.share(size)

    @property
    def middle(self) -> int:
        """How many of these rows are in the first half of the batch."""
        return sum(position < self.size // 2 for position in range(self.size)[self.share.rows])

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        """Return ``values`` (B, ...) of all rows of all processes' batch, without gradients."""
        values = values.detach()
        if distributed.world() == 1:
            return values
        rows = values.new_zeros(self.size, *values.shape[1:])
        if self.share.weight:
            rows[self.share.rows] = values
        return distributed.total(rows)  # (size, ...)

    def output(self, images: torch.Tensor) -> Output:
        """Run the model on images, with gradients to the prompts."""
        return self.trainer.output(images, self.texts)

    @cached_property
    def clean(self) -> Output:
        """The model's output on the clean images."""
        return self.output(self.pixels)

    @cached_property
    def adv(self) -> Output:
        """The model's output on the attacked images."""
        return self.output(self.attack())

    def attack(self, rows: slice = slice(None)) -> torch.Tensor:
        """Return adversarial versions of the images in ``rows``."""
        self.attacked = True
        if not len(self.labels[rows]):  # they are another process's
            return self.pixels[rows]
        spec = self.trainer.attack_spec
        reference = self.clean.logits.detach()[rows] if spec.objective == "kl" else None
        texts = self.texts.detach()

        def forward(images):
            return self.trainer.output(images, texts, for_attack=True).logits

        loss = objective_for(spec, forward, labels=self.labels[rows], reference=reference)
        attack = gradient_attack(loss, spec, spec.kwargs)
        return attack.run(self.pixels[rows], self.seeds[rows], scored=False).images


class AdversarialTrainer(RobustTrainer):
    """Trains prompts, refiners or a tower on clean and attacked images.

    A method sets ``node``, returns its prompts from ``prompt_spec`` and its loss from ``loss``.

    Attributes:
        block_outputs: whether the loss reads the image blocks' outputs.
        alarm_key: the key to change when training collapses; None where it cannot.
        alarm_term: the term that goes to 0 when the model answers all images alike.
        passes: images that the loss puts through a tower per training image, beside the attack.
        mean_of_samples: the loss is a mean of what the samples give one by one, or what it needs
            of the others comes from ``Batch.whole``; otherwise several processes are refused.
    """

    passes = 2.0  # clean and attacked
    least_vectors = 1  # fewer would leave nothing to train
    frozen_image_tower = False  # once the prompts are known, as they say
    block_outputs = False
    mean_of_samples = True
    alarm_key: str | None = None
    alarm_term = "loss_cons"

    # --- configuration ----------------------------------------------------------------------------

    @classmethod
    def extend_cfg(cls, cfg):
        add_defaults(
            cfg,
            "TRAINER.ADVERSARIAL",
            PREC="fp32",  # of forward and backward: fp32, bf16, amp (float16 on a GPU)
            ATTACK_PREC="fp32",  # of the attack in training: fp32 or bf16
            ACCUMULATE=1,  # batches per optimizer step
            CLASS_CHUNK=0,  # classes per text pass; 0: all at once
        )

    @classmethod
    def is_adversarial(cls, cfg) -> bool:
        return True

    @classmethod
    def nodes(cls):
        return ("ADVERSARIAL", *super().nodes())

    @classmethod
    def train_spec(cls, cfg) -> AttackSpec:
        """Return the training attack; a method's key ``INNER`` replaces its objective."""
        (spec,) = specs_from_cfg(cfg.ATTACK.TRAIN, key="ATTACK.TRAIN")
        inner = cfg.TRAINER[cls.node].get("INNER", "")
        return replace(spec, objective=inner) if inner else spec

    @classmethod
    def check_keys(cls, cfg):
        keys, own = cfg.TRAINER.ADVERSARIAL, cfg.TRAINER[cls.node]
        one_of("TRAINER.ADVERSARIAL.PREC", keys.PREC, PRECISIONS)
        one_of("DATALOADER.TRAIN_X.IN_MEMORY", cfg.DATALOADER.TRAIN_X.IN_MEMORY, ondevice.CHOICES)
        one_of("TRAINER.ADVERSARIAL.ATTACK_PREC", keys.ATTACK_PREC, ATTACK_PRECISIONS)
        at_least("TRAINER.ADVERSARIAL.ACCUMULATE", keys.ACCUMULATE, 1)
        at_least("TRAINER.ADVERSARIAL.CLASS_CHUNK", keys.CLASS_CHUNK, 0)
        if keys.PREC == "amp" and not (cfg.USE_CUDA and torch.cuda.is_available()):
            raise UserError(
                "TRAINER.ADVERSARIAL.PREC is 'amp', which needs a GPU; use fp32 or bf16"
            )
        for name, least in (("N_CTX", cls.least_vectors), ("PROMPT_DEPTH", 1)):
            if name in own:
                at_least(f"TRAINER.{cls.node}.{name}", own[name], least)
        if "INNER" in own:
            one_of(f"TRAINER.{cls.node}.INNER", own.INNER, ("", "ce", "kl"))
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

    @classmethod
    def image_forwards(cls, cfg, images):
        batch = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        whole = images - images % batch or images  # an incomplete last batch is dropped
        attack = (
            attack_forwards(cls.train_spec(cfg), scored=False) if cls.is_adversarial(cfg) else 0
        )
        return {"train": round(whole * cfg.OPTIM.MAX_EPOCH * cls.passes_per_image(cfg, attack))}

    @classmethod
    def passes_per_image(cls, cfg, attack: int) -> float:
        """Return the passes of one image in one epoch; ``attack``: those of its attack."""
        return attack + cls.passes

    @property
    def keys(self):
        """The method's own config node."""
        return self.cfg.TRAINER[self.node]

    # --- what a method defines --------------------------------------------------------------------

    @classmethod
    def prompt_spec(cls, keys, clip) -> PromptSpec:
        raise NotImplementedError

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss to minimise and the terms to show beside the accuracies."""
        raise NotImplementedError

    # --- data and model ---------------------------------------------------------------------------

    def build_data_loader(self):
        super().build_data_loader()
        if ondevice.wanted(self.cfg, self.dm.dataset.train_x, self.device):
            print("training images are kept decoded on the device and augmented there")
            self.train_loader_x = DeviceLoader(self.train_loader_x, self.cfg, self.device)

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if distributed.world() > 1 and not self.mean_of_samples:
            raise UserError(
                f"the loss of {type(self).__name__} is not a mean over samples, so that "
                f"{distributed.world()} processes cannot share a batch; start it with python"
            )

    def build_model(self):
        self.clip = self.load_clip()
        self.attack_spec = self.train_spec(self.cfg) if self.is_adversarial(self.cfg) else None
        self.model = self.build_trained()
        self.add_optimizer(self.model)

    def build_trained(self) -> torch.nn.Module:
        """Return what is trained; it offers ``image_features`` and ``text_features``."""
        self.spec = spec = self.served_spec(self.cfg, self.clip, self.template)
        asked = self.prompt_spec(self.keys, self.clip)
        for name in ("text_depth", "vision_depth"):
            depth, kept = getattr(asked, name), getattr(spec, name)
            if depth > kept:
                print(f"note: {name} {depth} is cut to the {kept} blocks of {self.clip.name}")
        self.frozen_image_tower = not spec.acts_on_images
        model = PromptedCLIP(self.clip, self.classnames, spec)
        if not spec.acts_on_texts:
            model.text_features()  # kept from here on, in float32
        return model

    def add_optimizer(self, module: torch.nn.Module) -> None:
        """Give ``module``'s parameters to Dassl's optimizer, schedule and checkpoints."""
        self.trained = module
        self.optim = build_optimizer(module, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", module, self.optim, self.sched)
        self.scaler = grad_scaler(self.cfg.TRAINER.ADVERSARIAL.PREC == "amp")
        print(f"# trained values: {self.prompt_parameters():,}")

    def image_features(self, pixels):
        return self.model.image_features(pixels)

    def text_features(self):
        return self.model.text_features(self.cfg.TRAINER.ADVERSARIAL.CLASS_CHUNK)

    def train_threat(self):
        return self.attack_spec.describe() if self.attack_spec else None

    # --- one step ---------------------------------------------------------------------------------

    def autocast(self, precision: str):
        """Autocast of ``precision``.

        Casts are not kept: one made inside an attack would cut the prompts off their gradients.
        """
        dtype = torch.float16 if precision == "amp" else torch.bfloat16
        enabled = precision != "fp32"
        return torch.autocast(self.device.type, dtype, enabled=enabled, cache_enabled=False)

    def output(self, images, texts, *, for_attack: bool = False, model=None) -> Output:
        """Run ``model`` (default: the trained one) on images in [0, 1] against texts (K, D)."""
        keys, model = self.cfg.TRAINER.ADVERSARIAL, model or self.model
        with self.autocast(keys.ATTACK_PREC if for_attack else keys.PREC):
            if self.block_outputs and not for_attack:
                features, blocks = model.image_features(images, blocks=True)
            else:
                features, blocks = model.image_features(images), None
        features = features.float()
        logits = self.clip.logit_scale * F.normalize(features, dim=-1) @ texts.float().t()
        return Output(features, logits, blocks)

    @cached_property
    def handmade(self) -> torch.Tensor:
        """Text features (K, D) of the hand-made prompt, for methods that consult frozen CLIP."""
        with torch.no_grad():
            return self.handmade_features()

    @torch.no_grad()
    def frozen_logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return frozen CLIP's logits (B, K) with the hand-made prompt."""
        with self.autocast(self.cfg.TRAINER.ADVERSARIAL.PREC):
            features = self.clip.encode_image(pixels).float()
        return self.clip.logit_scale * F.normalize(features, dim=-1) @ self.handmade.t()

    def make_batch(self, batch: dict) -> Batch:
        """Move a loader's batch to the device and encode the texts, once for the whole step."""
        size = len(batch["label"])
        rows, _ = distributed.share(size)
        pixels, labels = batch["img"][rows].to(self.device), batch["label"][rows].to(self.device)
        with self.autocast(self.cfg.TRAINER.ADVERSARIAL.PREC):
            texts = self.text_features()
        seeds = [
            hash_seed(max(self.cfg.SEED, 0), self.epoch, self.batch_idx, position)
            for position in range(size)[rows]
        ]
        index = batch["index"][rows] if "index" in batch else None
        return Batch(self, pixels, labels, texts, seeds, index, size)

    def forward_backward(self, batch):
        group = self.cfg.TRAINER.ADVERSARIAL.ACCUMULATE
        start = self.batch_idx // group * group
        size = min(group, self.num_batches - start)  # the last group may be smaller
        if self.batch_idx == start:
            self.optim.zero_grad(set_to_none=True)
        seen = self.make_batch(batch)
        try:
            loss, terms = self.loss(seen)
        except NotFinite as error:
            raise self._not_finite(str(error), {}) from error
        if self.attack_spec and not seen.attacked:
            raise RuntimeError(
                f"{type(self).__name__} lost its attack: the loss never asked for it"
            )
        weight = seen.share.weight
        summary = self._summary(loss, terms, seen)
        if not all(map(math.isfinite, summary.values())):
            raise self._not_finite("the loss is not finite", summary)
        self.scaler.scale((loss if weight == 1 else loss * weight) / size).backward()
        if self.batch_idx + 1 == start + size:
            self._update(summary)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        self.meter.update(summary)
        return summary

    def _summary(self, loss, terms: dict, seen: Batch) -> dict[str, float]:
        values = {"loss": loss, **terms}
        for name in ("clean", "adv"):
            if name in vars(seen):  # computed by the method
                logits = vars(seen)[name].logits
                values.setdefault(f"loss_{name}", mean_ce(logits, seen.labels))
                values.setdefault(f"acc_{name}", accuracy(logits, seen.labels))
        scalars = [torch.as_tensor(v, device=loss.device).detach().float() for v in values.values()]
        numbers = distributed.mean(torch.stack(scalars), seen.share.weight)
        numbers = numbers.tolist()  # one transfer for all of them
        return dict(zip(values, numbers, strict=True))

    def _update(self, summary: dict) -> None:
        distributed.sum_gradients(self.trained.parameters())
        self.scaler.unscale_(self.optim)
        if not self.scaler.is_enabled():  # a scaler skips such a step and lowers its scale
            peaks = [p.grad.abs().amax() for p in self.trained.parameters() if p.grad is not None]
            if peaks and not torch.stack(peaks).isfinite().all():
                raise self._not_finite("a gradient is not finite", summary)
        self.scaler.step(self.optim)
        self.scaler.update()

    def _not_finite(self, what: str, summary: dict) -> NonFiniteLoss:
        terms = ", ".join(f"{name} {value:g}" for name, value in summary.items()) or "none yet"
        return NonFiniteLoss(
            f"{what} at epoch {self.epoch + 1}, batch {self.batch_idx + 1} of {self.num_batches}, "
            f"lr {self.get_current_lr():g} (terms: {terms}); checkpoints are unchanged, lower "
            "OPTIM.LR or set TRAINER.ADVERSARIAL.PREC fp32"
        )

    # --- epochs -----------------------------------------------------------------------------------

    def before_epoch(self):
        super().before_epoch()
        # order and augmentation follow from (seed, epoch), wherever a run was resumed
        set_random_seed(hash_seed(max(self.cfg.SEED, 0), self.epoch) % 2**32)
        self.meter = MetricMeter()

    def after_epoch(self):
        means = {name: meter.avg for name, meter in self.meter.meters.items()}
        if self.alarm_key and self.epoch >= self.cfg.OPTIM.WARMUP_EPOCH:
            warning = collapse_warning(
                means.get("loss_clean"),
                means.get(self.alarm_term),
                len(self.classnames),
                self.alarm_key,
            )
            if warning:
                print(f"warning: epoch {self.epoch + 1}: {warning}")
                self.alarm_key = None  # once is enough
        super().after_epoch()


def hash_seed(*facts: int) -> int:
    """Return a 63-bit seed, a stable hash of integers such as (seed, epoch, step, position)."""
    digest = hashlib.sha256(":".join(map(str, facts)).encode()).digest()[:8]
    return int.from_bytes(digest, "big") >> 1


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the share of right predictions in percent."""
    return 100 * (logits.argmax(1) == labels).float().mean()


def enough_words(text: str, count: int) -> str:
    """Return ``text`` if ``count`` vectors can start from its words, else nothing (MaPLe)."""
    return text if 0 < count <= len(text.replace("_", " ").split()) else ""


def in_both_towers(keys, **others) -> PromptSpec:
    """Return N_CTX vectors in PROMPT_DEPTH layers of either tower.

    The text vectors start from the first words of CTX_INIT where a method has that key, and are
    not themselves made from the visual ones.
    """
    words = enough_words(keys.get("CTX_INIT", ""), keys.N_CTX)
    return PromptSpec(
        text=keys.N_CTX,
        vision=keys.N_CTX,
        text_depth=keys.PROMPT_DEPTH,
        vision_depth=keys.PROMPT_DEPTH,
        text_init="" if others.get("coupling") == "vision_to_text" else words,
        **others,
    )


def collapse_warning(
    clean_loss: float | None, consistency: float | None, n_classes: int, key: str
) -> str | None:
    """Return a warning where the model has become consistent by answering nothing.

    Args:
        clean_loss: mean cross-entropy on clean images over an epoch.
        consistency: mean divergence between clean and attacked answers, in nats.
        key: the config key to change.
    """
    if clean_loss is None or consistency is None or n_classes < 2:
        return None
    chance = math.log(n_classes)
    if clean_loss < COLLAPSED_LOSS * chance or consistency > COLLAPSED_CONSISTENCY:
        return None
    return (
        f"training may have collapsed: the clean loss is {clean_loss:.3f} (guessing gives "
        f"ln {n_classes} = {chance:.3f}) while the consistency is {consistency:.2g}; lower {key}"
    )
