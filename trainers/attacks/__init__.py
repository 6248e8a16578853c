"""Gradient attacks on images in [0, 1]: what they are, the one loop, their self-checks."""

from .autoattack import build_part, parts_of
from .checks import AttackChecks, summarise, verify
from .gradient import AttackResult, GradientAttack, NotFinite, check_pixels, objective_for
from .probes import compare, judge, probe
from .spec import AttackSpec, parse_255, specs_from_cfg

__all__ = [
    "AttackChecks",
    "AttackResult",
    "AttackSpec",
    "GradientAttack",
    "NotFinite",
    "build_part",
    "check_pixels",
    "compare",
    "judge",
    "objective_for",
    "parse_255",
    "parts_of",
    "probe",
    "specs_from_cfg",
    "summarise",
    "verify",
]
