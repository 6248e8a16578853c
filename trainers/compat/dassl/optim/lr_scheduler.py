"""``cfg.OPTIM`` -> learning-rate schedule, one step per epoch, with an optional warm-up."""

from torch.optim import lr_scheduler as torch_schedulers

from ..utils.tools import check_choice

AVAI_SCHEDS = ["single_step", "multi_step", "cosine"]


class PlainState:
    """State of a warm-up schedule as plain values, the main schedule's as a dict within."""

    def state_dict(self) -> dict:
        state = {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "successor")}
        return {**state, "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict) -> None:
        state = dict(state_dict)
        successor = state.pop("successor")
        if hasattr(successor, "state_dict"):  # Dassl keeps the schedule itself in memory
            successor = successor.state_dict()
        self.successor.load_state_dict(successor)
        self.__dict__.update(state)


class _BaseWarmupScheduler(PlainState, torch_schedulers.LRScheduler):
    """``warmup_epoch`` epochs by :meth:`warmup_lr`, then the ``successor`` schedule."""

    def __init__(self, optimizer, successor, warmup_epoch, first_lr, last_epoch=-1):
        self.first_lr = first_lr
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return [self.warmup_lr(base_lr) for base_lr in self.base_lrs]

    def step(self, epoch=None):
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)


class ConstantWarmupScheduler(_BaseWarmupScheduler):
    def warmup_lr(self, base_lr):
        return self.first_lr


class LinearWarmupScheduler(_BaseWarmupScheduler):
    """Warm-up at ``first_lr`` in the first epoch, then base rate x epoch / warmup_epoch."""

    def warmup_lr(self, base_lr):
        if self.last_epoch == 0:
            return self.first_lr
        return base_lr * self.last_epoch / self.warmup_epoch


def build_lr_scheduler(optimizer, optim_cfg):
    """Build the schedule named ``optim_cfg.LR_SCHEDULER``, after a warm-up if one is set."""
    cfg, name = optim_cfg, optim_cfg.LR_SCHEDULER
    check_choice("schedule", name, AVAI_SCHEDS)
    check_choice("warm-up", cfg.WARMUP_TYPE, ("constant", "linear"))
    stepsize = cfg.STEPSIZE if isinstance(cfg.STEPSIZE, (list, tuple)) else [cfg.STEPSIZE]
    if not all(isinstance(epochs, int) for epochs in stepsize):
        raise TypeError(f"OPTIM.STEPSIZE is {cfg.STEPSIZE!r}, expected whole epochs")
    if name == "single_step":
        epochs = stepsize[-1] if stepsize[-1] > 0 else cfg.MAX_EPOCH
        scheduler = torch_schedulers.StepLR(optimizer, epochs, gamma=cfg.GAMMA)
    elif name == "multi_step":
        scheduler = torch_schedulers.MultiStepLR(optimizer, stepsize, gamma=cfg.GAMMA)
    else:
        scheduler = torch_schedulers.CosineAnnealingLR(optimizer, float(cfg.MAX_EPOCH))

    if cfg.WARMUP_EPOCH <= 0:
        return scheduler
    if not cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = cfg.WARMUP_EPOCH
    if cfg.WARMUP_TYPE == "constant":
        kind, first_lr = ConstantWarmupScheduler, cfg.WARMUP_CONS_LR
    else:
        kind, first_lr = LinearWarmupScheduler, cfg.WARMUP_MIN_LR
    return kind(optimizer, scheduler, cfg.WARMUP_EPOCH, first_lr)
