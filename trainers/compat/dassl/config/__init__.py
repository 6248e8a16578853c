"""The config with its defaults, and the removal of other trainers' nodes."""

from yacs.config import CfgNode

from .defaults import DEFAULTS

cfg_default = CfgNode(DEFAULTS)


def get_cfg_default() -> CfgNode:
    """Return a fresh copy of the defaults, ready to be extended and merged into."""
    return cfg_default.clone()


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drop every node of ``cfg.TRAINER`` that belongs to another trainer than ``trainer``."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            cfg.TRAINER.pop(key)
