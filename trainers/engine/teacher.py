"""A teacher tuned on clean images before its student: kept in the run's folder, resumed there."""

import time
from pathlib import Path

import torch
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import set_random_seed

from ..losses import mean_ce
from ..utils.seeds import hash_seed
from .adversarial import AdversarialTrainer
from .alarms import NonFiniteLoss
from .checkpoints import load_checkpoint, load_prompts, newest_checkpoint, save_checkpoint


def tune_on_clean(trainer: AdversarialTrainer, teacher: torch.nn.Module, epochs: int) -> None:
    """Minimise CE(T(x), y) with the student's optimizer settings, then freeze the teacher.

    An interrupted run resumes from the newest checkpoint in its folder ``teacher``; a teacher that
    this run has finished is loaded. ``trainer.teach(pixels)`` returns its logits (B, K).
    NonFiniteLoss, with unchanged checkpoints, if the loss is infinite or NaN.
    """
    cfg, folder, scaler = trainer.cfg, Path(trainer.output_dir) / "teacher", trainer.scaler
    optim = build_optimizer(teacher, cfg.OPTIM)
    sched = build_lr_scheduler(optim, cfg.OPTIM)
    newest = newest_checkpoint(folder)
    start, spent, clock = 0, 0.0, time.perf_counter()
    if newest:
        state = load_checkpoint(newest)
        load_prompts(teacher, state["state_dict"], newest)
        start, spent = state["epoch"], state.get("seconds", 0.0)
        if start < epochs:
            optim.load_state_dict(state["optimizer"])
            sched.load_state_dict(state["scheduler"])
            scaler.load_state_dict(state["scaler"])
            print(f"Resuming teacher from {newest} (epoch {start})")
    for epoch in range(start, epochs):
        # order and augmentation follow from (seed, epoch), wherever a run was resumed
        set_random_seed(hash_seed(max(cfg.SEED, 0), epoch, -1) % 2**32)
        for batch in trainer.train_loader_x:
            pixels, labels = (batch[k].to(trainer.device) for k in ("img", "label"))
            loss = mean_ce(trainer.teach(pixels), labels)
            shown = loss.item()
            if not abs(shown) < float("inf"):
                raise NonFiniteLoss(f"the teacher's loss is {shown}", f"epoch {epoch + 1}")
            optim.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optim)
            scaler.update()
        sched.step()
        print(f"teacher epoch [{epoch + 1}/{epochs}] loss {shown:.4f}")
        every = cfg.TRAIN.CHECKPOINT_FREQ
        if epoch + 1 == epochs or (every and (epoch + 1) % every == 0):
            state = {
                "state_dict": {k: v.cpu() for k, v in teacher.state_dict().items()},
                "epoch": epoch + 1,
                "optimizer": optim.state_dict(),
                "scheduler": sched.state_dict(),
                "scaler": scaler.state_dict(),
                "seconds": spent + time.perf_counter() - clock,
            }
            save_checkpoint(folder / f"model.pth.tar-{epoch + 1}", state)
    trainer.seconds["train"] += spent + time.perf_counter() - clock
    teacher.requires_grad_(False)
