"""AdvPT: Adversarial Prompt Tuning for Vision-Language Models (Zhang et al., ECCV 2024).

Phase A makes a bank of adversarial image features without any text; phase B aligns learned
context vectors with it. The attacker never sees the learned prompt, so the paper's robustness is
against transferred images; end to end, through the prompt, little of it remains.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from torch import nn

from .attacks import specs_from_cfg
from .attacks.cost import bank_forwards
from .backbone import text_features
from .config.keys import POSITIONS, PRECISIONS, add_defaults, at_least, one_of
from .engine.checkpoints import load_prompts
from .engine.trainer import RobustTrainer, register
from .evaluation.bank import Bank, build_bank
from .evaluation.rows import Rows
from .prompting import PromptLearner
from .prompting.prompts import context_spec
from .utils import distributed
from .utils.errors import UserError
from .utils.versions import grad_scaler


class PromptedText(nn.Module):
    """Logits of stored image features: s * norm(A) . t(V) (section 3.2)."""

    def __init__(self, clip, prompt_learner: PromptLearner, class_chunk: int):
        super().__init__()
        self.clip, self.prompt_learner, self.class_chunk = clip, prompt_learner, class_chunk

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Raw image features (B, D) to logits (B, K)."""
        texts = text_features(self.clip, self.prompt_learner(), self.class_chunk)  # (K, D)
        return self.clip.logit_scale * F.normalize(features, dim=-1) @ texts.t()


class BankLoader:
    """Batches of a bank in Dassl's form; their order depends on (seed, epoch) alone."""

    def __init__(self, bank: Bank, batch_size: int, seed: int, device):
        self.on_disk, self.device = isinstance(bank.features, Rows), device
        self.features = bank.features if self.on_disk else bank.features.to(device)
        self.labels = bank.labels.to(device)
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.labels), generator=generator)
        place = "cpu" if self.on_disk else self.device  # of the rows' numbers
        for rows in order.to(place).split(self.batch_size):
            label = self.labels[rows.to(self.device)]
            yield {"img": self.features[rows].to(self.device), "label": label}


@register
class AdvPT(RobustTrainer):
    """Tune context vectors on a bank of adversarial features: min CE(s norm(A) . t(V), y)."""

    paper = "https://arxiv.org/abs/2311.11261"
    node = "ADVPT"

    @classmethod
    def extend_cfg(cls, cfg):
        add_defaults(
            cfg,
            "TRAINER.ADVPT",
            N_CTX=32,  # number of context vectors (paper)
            CTX_INIT="",  # words to start from; "": N(0, 0.02^2)
            CSC=False,  # class-specific contexts
            CLASS_TOKEN_POSITION="end",  # end, middle or front
            PREC="fp32",  # of the tuning: fp32, amp (GPU) or bf16
            CLASS_CHUNK=0,  # classes per text pass; 0: all at once
            VIEWS=1,  # random starts per bank image (our choice)
            BANK_BATCH=32,  # images per forward of the bank
        )

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if cfg.TRAINER.ADVPT.PREC == "amp" and not (cfg.USE_CUDA and torch.cuda.is_available()):
            raise UserError("TRAINER.ADVPT.PREC is 'amp', which needs a GPU; use fp32 or bf16")

    @classmethod
    def check_keys(cls, cfg):
        keys = cfg.TRAINER.ADVPT
        one_of("TRAINER.ADVPT.PREC", keys.PREC, PRECISIONS)
        one_of("TRAINER.ADVPT.CLASS_TOKEN_POSITION", keys.CLASS_TOKEN_POSITION, POSITIONS)
        for key, least in (("N_CTX", 1), ("VIEWS", 1), ("BANK_BATCH", 1), ("CLASS_CHUNK", 0)):
            at_least(f"TRAINER.ADVPT.{key}", keys[key], least)
        (spec,) = specs_from_cfg(cfg.ATTACK.TRAIN, key="ATTACK.TRAIN")
        if (spec.objective, spec.target) != ("embedding_kl", "embedding"):
            raise UserError(
                f"AdvPT's bank is made without any text, but ATTACK.TRAIN has objective "
                f"'{spec.objective}' and target '{spec.target}'; end the command line with "
                "ATTACK.THREAT advpt16, or set ATTACK.TRAIN.OBJECTIVE embedding_kl and "
                "ATTACK.TRAIN.TARGET embedding"
            )

    @classmethod
    def is_adversarial(cls, cfg):
        return True

    @classmethod
    def image_forwards(cls, cfg, images):
        (spec,) = specs_from_cfg(cfg.ATTACK.TRAIN, key="ATTACK.TRAIN")
        return {"bank": images * bank_forwards(spec, cfg.TRAINER.ADVPT.VIEWS)}

    @classmethod
    def prompt_spec(cls, keys, clip):
        return context_spec(keys, clip)

    def build_model(self):
        cfg = self.cfg.TRAINER.ADVPT
        self.clip = self.load_clip()
        self.spec = spec = self.served_spec(self.cfg, self.clip, self.template)
        learner = PromptLearner(
            self.classnames,
            self.clip,
            n_ctx=spec.text,
            ctx_init=spec.text_init,
            csc=spec.csc,
            position=spec.position,
        ).to(self.device)
        self.model = PromptedText(self.clip, learner, cfg.CLASS_CHUNK)
        self.optim = build_optimizer(learner, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", learner, self.optim, self.sched)
        self.scaler = grad_scaler(cfg.PREC == "amp")

    def before_train(self):
        """Phase A; afterwards the image tower is not needed and leaves the memory."""
        cfg = self.cfg
        (spec,) = specs_from_cfg(cfg.ATTACK.TRAIN, key="ATTACK.TRAIN")
        bank = build_bank(
            self.clip,
            self.dm.dataset.train_x,
            spec=spec,
            views=cfg.TRAINER.ADVPT.VIEWS,
            seed=max(cfg.SEED, 0),
            preprocess=self.preprocess,
            cache_dir=self.bank_folder(),
            batch_size=cfg.TRAINER.ADVPT.BANK_BATCH,
            title="adversarial bank",
        )
        for warning in bank.warnings:
            print(f"warning: {warning}")
        if cfg.TEST.FINAL_MODEL == "best_val":
            self.test(split="val")  # keeps the validation images' features for every epoch
        self.clip.without_image_tower()
        self.tuning = True
        batch = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        self.train_loader_x = BankLoader(bank, batch, max(cfg.SEED, 0), self.device)
        super().before_train()
        self.seconds["bank"] = bank.seconds

    def after_train(self):
        self.tuning = False
        super().after_train()

    def before_epoch(self):
        super().before_epoch()
        self.train_loader_x.epoch = self.epoch

    def forward_backward(self, batch):
        rows, weight = distributed.share(len(batch["label"]))
        features, label = batch["img"][rows], batch["label"][rows]
        with self._autocast():
            logits = self.model(features)  # (B, K)
        loss = F.cross_entropy(logits.float(), label)
        shown = torch.stack([loss.detach(), compute_accuracy(logits, label)[0].reshape(())])
        shown = distributed.mean(shown, weight)
        self.detect_anomaly(shown[0])
        self.optim.zero_grad(set_to_none=True)
        self.scaler.scale(loss * weight if weight != 1 else loss).backward()
        distributed.sum_gradients(self.model.prompt_learner.parameters())
        self.scaler.step(self.optim)
        self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return dict(zip(("loss", "acc"), shown.tolist(), strict=True))

    def _autocast(self):
        precision = self.cfg.TRAINER.ADVPT.PREC
        if precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.float16 if precision == "amp" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype)

    def text_features(self):
        learner = self.model.prompt_learner
        return text_features(self.clip, learner(), self.cfg.TRAINER.ADVPT.CLASS_CHUNK)

    @classmethod
    def prompt_facts(cls, spec):
        return {"position": spec.position, "csc": spec.csc}  # the context's shape says the rest

    @classmethod
    def deployed(cls, weights):
        """Return the context as the first layer of text prompts."""
        return {"text_prompts": weights["ctx"][None]} if "ctx" in weights else weights

    def adopt(self, weights, path):
        if "text_prompts" in weights:
            weights = {"ctx": weights["text_prompts"].squeeze(0)}
        load_prompts(self.model.prompt_learner, weights, path)

    def train_threat(self):
        return specs_from_cfg(self.cfg.ATTACK.TRAIN, key="ATTACK.TRAIN")[0].describe()
