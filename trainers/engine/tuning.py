"""The trainer of prompts: what is trained, its optimizer step and precision."""

import math
from dataclasses import replace

import torch
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import MetricMeter, set_random_seed

from ..attacks import AttackSpec, NotFinite, specs_from_cfg
from ..config.keys import Key, add_defaults
from ..losses import mean_ce
from ..prompting import PromptedCLIP, PromptSpec
from ..utils.errors import UserError
from ..utils.seeds import hash_seed
from .alarms import NonFiniteLoss
from .batch import Batch, accuracy
from .trainer import RobustTrainer


def inner(default: str = "", source: str = "ours") -> Key:
    about = f"objective of the attack ({source}); empty: that of ATTACK.TRAIN"
    return Key(default, about, choices=("", "ce", "kl"))


class PromptTrainer(RobustTrainer):
    """Minimises a method's loss over its prompts.

    A method sets ``node``, returns its prompts from ``prompt_spec`` and its loss from ``loss``.
    """

    white_box = True  # the loss must attack the images of every batch, if ``is_adversarial``

    @classmethod
    def extend_cfg(cls, cfg):
        add_defaults(
            cfg,
            "TRAINER.ADVERSARIAL",
            # amp: float16 on a GPU; its gradients of pixels underflow to exactly 0
            PREC=Key("fp32", "of forward and backward", choices=("fp32", "amp", "bf16")),
            ATTACK_PREC=Key("fp32", "of a white-box attack", choices=("fp32", "bf16")),
            ACCUMULATE=Key(1, "batches per optimizer step", least=1, most=10**6),
            CUDA_GRAPH=Key(False, "record the text tower on a GPU, replay it (not measured yet)"),
            CLASS_CHUNK=Key(0, "classes per text pass; 0: all at once", least=0),
        )
        super().extend_cfg(cfg)

    @classmethod
    def check_keys(cls, cfg):
        gpu = cfg.USE_CUDA and torch.cuda.is_available()
        if cfg.TRAINER.ADVERSARIAL.PREC == "amp" and not gpu:
            raise UserError(
                "TRAINER.ADVERSARIAL.PREC is 'amp', which needs a GPU; use fp32 or bf16"
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

    # --- what a method defines, with prompt_spec ------------------------------------------------

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss to minimise and the terms to show beside it."""
        raise NotImplementedError

    # --- model ------------------------------------------------------------------------------------

    @property
    def keys(self):
        return self.cfg.TRAINER[self.node]

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
        words, count = self.keys.get("CTX_INIT", ""), self.keys.get("N_CTX", spec.text)
        if words and spec.text_init and spec.text != count:
            print(f"note: CTX_INIT '{words}' makes {spec.text} vectors, not N_CTX {count}")
        elif words and not spec.text_init and spec.text:
            why = "the visual prompts make the text ones"
            if not spec.text_is_driven:
                why = f"it has fewer words than N_CTX {count}"
            print(f"note: CTX_INIT '{words}' is not used: {why}")
        self.frozen_image_tower = not spec.acts_on_images
        model = PromptedCLIP(self.clip, self.classnames, spec)
        if not spec.acts_on_texts:
            model.text_features()  # kept from here on, in float32
        return model

    def use_public_text(self, theirs: PromptSpec) -> None:
        """Serve a checkpoint of the public code with its text, where that is not a setting."""
        if theirs.text or theirs.template == self.spec.template:
            return
        print(f"note: as in the public code, the text is '{theirs.template}' for every data set")
        self.spec = replace(self.spec, template=theirs.template)
        self.model = self.trained = PromptedCLIP(self.clip, self.classnames, self.spec)
        self._models["prompt_learner"] = self.model

    def add_optimizer(self, module: torch.nn.Module) -> None:
        """Give ``module``'s parameters to Dassl's optimizer, schedule and checkpoints."""
        self.trained, self.graphs = module, {}
        self.optim = build_optimizer(module, self.cfg.OPTIM)
        for group in self.optim.param_groups:
            if self.cfg.OPTIM.FUSED and "fused" in group:
                group["fused"] = True
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", module, self.optim, self.sched)
        self.scaler = torch.amp.GradScaler(enabled=self.cfg.TRAINER.ADVERSARIAL.PREC == "amp")
        print(f"# trained values: {self.prompt_parameters():,}")

    def image_features(self, pixels):
        return self.model.image_features(pixels)

    def text_features(self):
        return self.model.text_features(self.cfg.TRAINER.ADVERSARIAL.CLASS_CHUNK)

    def encode_texts(self, model=None) -> torch.Tensor:
        """Return ``model``'s (default: the trained one's) text features in training's precision."""
        keys, model = self.cfg.TRAINER.ADVERSARIAL, model or self.model
        with self.autocast(keys.PREC):
            learned = self.spec is not None and self.spec.acts_on_texts
            if not (keys.CUDA_GRAPH and learned and self.device.type == "cuda"):
                return model.text_features(keys.CLASS_CHUNK)
            if model not in self.graphs:
                self.graphs[model] = model.graphed_texts(keys.CLASS_CHUNK)
            return self.graphs[model]()

    def train_threat(self):
        return self.attack_spec.describe() if self.attack_spec else None

    # --- one step ---------------------------------------------------------------------------------

    def autocast(self, precision: str):
        """Return a context of ``precision``: fp32, bf16 or amp."""
        dtype = torch.float16 if precision == "amp" else torch.bfloat16
        enabled = precision != "fp32"
        # a cast kept from inside an attack would cut the prompts off their gradients
        return torch.autocast(self.device.type, dtype, enabled=enabled, cache_enabled=False)

    def forward_backward(self, batch):
        group = self.cfg.TRAINER.ADVERSARIAL.ACCUMULATE
        start = self.batch_idx // group * group
        size = min(group, self.num_batches - start)  # the last group may be smaller
        if self.batch_idx == start:
            self.optim.zero_grad(set_to_none=True)
        seen = Batch(self, batch)
        try:
            loss, terms = self.loss(seen)
        except NotFinite as error:
            raise self.not_finite(str(error), {}) from error
        if self.attack_spec and self.white_box and not seen.attacked:
            raise RuntimeError(
                f"{type(self).__name__} lost its attack: the loss never asked for it"
            )
        summary = self._summary(loss, terms, seen)
        if not all(map(math.isfinite, summary.values())):
            raise self.not_finite("the loss is not finite", summary)
        self.scaler.scale(loss / size).backward()
        if self.batch_idx + 1 == start + size:
            self._update(summary)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        self.meter.update(summary)
        return summary

    def _summary(self, loss, terms: dict, batch: Batch) -> dict[str, float]:
        values = {"loss": loss, **terms}
        for name, output in batch.outputs.items():
            values.setdefault(f"loss_{name}", mean_ce(output.logits, batch.labels))
            values.setdefault(f"acc_{name}", accuracy(output.logits, batch.labels))
        scalars = [torch.as_tensor(v, device=loss.device).detach().float() for v in values.values()]
        numbers = torch.stack(scalars).tolist()  # one transfer for all of them
        return dict(zip(values, numbers, strict=True))

    def _update(self, summary: dict) -> None:
        self.scaler.unscale_(self.optim)
        if not self.scaler.is_enabled():  # a scaler skips such a step and lowers its scale
            peaks = [p.grad.abs().amax() for p in self.trained.parameters() if p.grad is not None]
            if peaks and not torch.stack(peaks).isfinite().all():
                raise self.not_finite("a gradient is not finite", summary)
        self.scaler.step(self.optim)
        self.scaler.update()

    def not_finite(self, what: str, summary: dict) -> NonFiniteLoss:
        """Return the error that stops the training at this batch."""
        terms = ", ".join(f"{name} {value:g}" for name, value in summary.items()) or "none yet"
        where = f"epoch {self.epoch + 1}, batch {self.batch_idx + 1} of {self.num_batches}"
        return NonFiniteLoss(what, f"{where}, lr {self.get_current_lr():g} (terms: {terms})")

    def before_epoch(self):
        super().before_epoch()
        # order and augmentation follow from (seed, epoch), wherever a run was resumed
        set_random_seed(hash_seed(max(self.cfg.SEED, 0), self.epoch) % 2**32)
        self.meter = MetricMeter()
