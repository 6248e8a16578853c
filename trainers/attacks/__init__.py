"""Gradient attacks on images in [0, 1]: what they are, the one loop, their self-checks."""

from . import keys  # noqa: F401  declares ATTACK
from .base import AttackResult, NotFinite, check_pixels
from .checks import AttackChecks, compare, verify
from .dispatch import parts_of, run_attack, tower_in
from .family import gradient_attack
from .gradient import GradientAttack, objective_for
from .probes import judge, probe_attack, probe_model
from .rap import RAP
from .settings import parse_255
from .spec import AttackSpec, specs_from_cfg
from .surrogates import Surrogate, load_surrogate

__all__ = [
    "AttackChecks",
    "AttackResult",
    "AttackSpec",
    "GradientAttack",
    "NotFinite",
    "RAP",
    "Surrogate",
    "check_pixels",
    "gradient_attack",
    "compare",
    "judge",
    "load_surrogate",
    "objective_for",
    "parse_255",
    "parts_of",
    "probe_attack",
    "probe_model",
    "run_attack",
    "specs_from_cfg",
    "tower_in",
    "verify",
]
