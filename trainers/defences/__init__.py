"""Defences in front of the model: purification of images that the prompts know nothing of.

The config node ``DEFENCE`` names one; :func:`build_defence` makes it and :func:`defended` puts it
in front of a forward function, for the evaluation and, if it is adaptive, for the attacker.
"""

from __future__ import annotations

from ..config import keys as config
from ..utils.errors import UserError, nearest
from . import diffpure, jpeg, rescale, super_resolution  # noqa: F401  register themselves
from .base import DEFENCES, Defence, defended

__all__ = ["DEFENCES", "Defence", "build_defence", "defended", "extend_cfg"]

ADAPTIVE = ("both", "none", "bpda")


def extend_cfg(cfg) -> None:
    """Add the keys of ``DEFENCE``; where each default comes from stands beside it."""
    config.add_defaults(
        cfg,
        "DEFENCE",
        NAME="",  # "": none; wavelet, super_resolution, rescale, jpeg or diffpure
        SIGMA=0.02,  # wavelet, super_resolution: noise level in [0, 1] (author; paper 0.2)
        SCALE=0.903,  # rescale: least size, a part of the image's (299/331, Xie et al.)
        PAD=0.0,  # rescale: grey value around the image in [0, 1] (Xie et al.)
        QUALITY=75,  # jpeg: 1 to 95 (ours; Guo et al., 2018, use it too)
        T=150,  # diffpure: diffusion steps forth and back, of usually 1000 (paper)
        MODEL="",  # super_resolution: EDSR weights, "": bicubic (ours); diffpure: folder or hub
        ADAPTIVE="both",  # attacks made without the defence (none, paper), through it (bpda), both
        EOT=1,  # draws per step of an adaptive attack on a random defence (ours)
    )


def build_defence(cfg) -> Defence | None:
    """Make the defence that ``cfg.DEFENCE`` names; None where NAME is empty.

    Raises:
        UserError: a name or value is refused, a package is missing, or MODEL cannot be loaded.
    """
    node = cfg.DEFENCE
    if node.NAME and node.NAME not in DEFENCES:
        hint = nearest(node.NAME, DEFENCES)
        raise UserError(f"DEFENCE.NAME is {node.NAME!r}, not a defence.{hint}")
    config.one_of("DEFENCE.ADAPTIVE", node.ADAPTIVE, ADAPTIVE)
    config.at_least("DEFENCE.EOT", node.EOT, 1)
    return DEFENCES[node.NAME].from_cfg(node) if node.NAME else None


config.section(extend_cfg, build_defence)
