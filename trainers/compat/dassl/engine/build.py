"""The registry of trainers."""

from ..utils import Registry

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg):
    """Build the trainer named ``cfg.TRAINER.NAME``."""
    return TRAINER_REGISTRY.build(cfg.TRAINER.NAME, cfg.VERBOSE, cfg)
