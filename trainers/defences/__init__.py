"""Defences in front of the model: purification of images, for which no prompt is trained.

The config node ``DEFENCE`` names one; :func:`build_defence` makes it and :func:`defended` puts it
in front of a forward function, for the evaluation and, if it is adaptive, for the attacker.
"""

from ..config import keys as config
from ..config.keys import Key
from . import diffpure, jpeg, rescale, super_resolution  # noqa: F401  register themselves
from .base import DEFENCES, Defence, defended

__all__ = ["DEFENCES", "Defence", "build_defence", "defended", "extend_cfg"]


def extend_cfg(cfg) -> None:
    """Add the keys of ``DEFENCE``; the source of each default is in brackets."""
    config.add_defaults(
        cfg,
        "DEFENCE",
        NAME=Key("", "empty: none", choices=lambda: ("", *DEFENCES)),
        SIGMA=super_resolution.SIGMA,
        SCALE=rescale.SCALE,
        PAD=rescale.PAD,
        QUALITY=jpeg.QUALITY,
        T=diffpure.T,
        MODEL=Key("", "diffpure: a folder"),
        # attacks made without the defence (none, paper), through it (bpda), or both
        ADAPTIVE=Key("both", "what the attack knows of it", choices=("both", "none", "bpda")),
        EOT=Key(1, "draws per step of an attack through a random one (ours)", least=1, most=10**4),
    )


def build_defence(cfg) -> Defence | None:
    """Make the defence that ``cfg.DEFENCE`` names; None where NAME is empty.

    UserError if a name or value is refused, a package is missing, or MODEL cannot be loaded.
    """
    node = cfg.DEFENCE
    for name in ("NAME", "ADAPTIVE", "EOT"):
        config.KEYS[f"DEFENCE.{name}"].read(f"DEFENCE.{name}", node[name])
    return DEFENCES[node.NAME].from_cfg(node) if node.NAME else None


config.section("DEFENCE", extend_cfg, build_defence)
