"""AdvPT: Adversarial Prompt Tuning for Vision-Language Models (Zhang et al., ECCV 2024).

Phase A makes a bank of adversarial image features without any text; phase B aligns learned
context vectors with it. The attacker never sees the learned prompt, so the paper's robustness is
against transferred images; end to end, through the prompt, little of it remains.
"""

import torch
import torch.nn.functional as F

from .backbone import cosine_logits
from .config.keys import Key
from .engine.batch import accuracy
from .engine.trainer import register
from .engine.tuning import PromptTrainer
from .evaluation.bank import Bank, build_bank
from .evaluation.samples import ImageList
from .evaluation.victim import TrainerVictim
from .prompting.spec import in_context, of_context
from .utils.errors import UserError


class BankLoader:
    """Batches of a bank in Dassl's form; their order depends on (seed, epoch) alone."""

    def __init__(self, bank: Bank, batch_size: int, seed: int, device):
        self.features, self.labels, self.device = bank.features, bank.labels, device
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.labels), generator=generator)
        for rows in order.split(self.batch_size):
            batch = {"img": self.features[rows], "label": self.labels[rows]}
            yield {name: value.to(self.device) for name, value in batch.items()}


@register
class AdvPT(PromptTrainer):
    """Tune context vectors on a bank of adversarial features: min CE(s norm(A) . t(V), y)."""

    paper = "https://arxiv.org/abs/2311.11261"
    node = "ADVPT"
    white_box = False  # the attack makes the bank
    own_keys = dict(
        **of_context(32, "paper"),
        VIEWS=Key(1, "random starts per bank image (ours)", least=1, most=1000),
        BANK_BATCH=Key(32, "images per forward of the bank", least=1, most=10**6),
    )

    @classmethod
    def check_keys(cls, cfg):
        super().check_keys(cfg)
        spec = cls.train_spec(cfg)
        if (spec.objective, spec.target) != ("embedding_kl", "embedding"):
            raise UserError(
                f"AdvPT's bank is made without any text, but ATTACK.TRAIN has objective "
                f"'{spec.objective}' and target '{spec.target}'; end the command line with "
                "ATTACK.THREAT advpt16, or set ATTACK.TRAIN.OBJECTIVE embedding_kl and "
                "ATTACK.TRAIN.TARGET embedding"
            )

    @classmethod
    def prompt_spec(cls, keys, clip):
        return in_context(keys, clip)

    def before_train(self):
        """Phase A, on the frozen tower; then it is not needed and leaves the memory."""
        cfg, seed = self.cfg, max(self.cfg.SEED, 0)
        images, victim = ImageList(self.dm.dataset.train_x, self.preprocess), TrainerVictim(self)
        victim.prepare()
        victim.check_tower(images)  # before it is freed
        bank = build_bank(
            self.clip,
            images,
            spec=self.attack_spec,
            views=self.keys.VIEWS,
            seed=seed,
            cache_dir=self.bank_folder(),
            batch_size=self.keys.BANK_BATCH,
            title="adversarial bank",
        )
        for warning in bank.warnings:
            print(f"warning: {warning}")
        if cfg.TEST.FINAL_MODEL == "best_val":
            self.test(split="val")  # keeps the validation images' features for every epoch
        if self.frozen_image_tower:  # else validation needs it
            self.clip.without_image_tower()
            self.tuning = True
        batch_size = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        self.train_loader_x = BankLoader(bank, batch_size, seed, self.device)
        super().before_train()
        self.seconds["bank"] = bank.seconds

    def before_epoch(self):
        super().before_epoch()
        self.train_loader_x.epoch = self.epoch

    def loss(self, batch):
        """Phase B: CE(s norm(A) . t(V), y) of the bank's features A (section 3.2)."""
        logits = cosine_logits(batch.images, batch.texts, self.clip.logit_scale)  # (B, K)
        # mean_ce rounds otherwise, enough to move the figures of 1,600 steps by a sample
        return F.cross_entropy(logits, batch.labels), {"acc": accuracy(logits, batch.labels)}

    def after_train(self):
        self.tuning = False
        super().after_train()
