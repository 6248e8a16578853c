"""Trainers: the registry, the training loop and its hooks."""

from ..utils import Registry
from .trainer import SimpleTrainer, TrainerBase, TrainerX

__all__ = ["TRAINER_REGISTRY", "SimpleTrainer", "TrainerBase", "TrainerX", "build_trainer"]
TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg):
    return TRAINER_REGISTRY.build(cfg.TRAINER.NAME, cfg.VERBOSE, cfg)
