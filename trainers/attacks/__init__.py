"""Gradient attacks on images in [0, 1]: what they are, the one loop, their self-checks."""

from .checks import AttackChecks, summarise, verify
from .gradient import AttackResult, GradientAttack, NotFinite, check_pixels, objective_for
from .spec import AttackSpec, parse_255, specs_from_cfg

__all__ = [
    "AttackChecks",
    "AttackResult",
    "AttackSpec",
    "GradientAttack",
    "NotFinite",
    "check_pixels",
    "objective_for",
    "parse_255",
    "specs_from_cfg",
    "summarise",
    "verify",
]
