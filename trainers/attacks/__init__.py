"""Gradient attacks on images in [0, 1]: what they are, the one loop, their self-checks."""

from . import keys  # noqa: F401  declares ATTACK
from .autoattack import parts_of
from .checks import AttackChecks, summarise, verify
from .dispatch import run_attack, tower_in
from .family import Aimed, aims_of, gradient_attack
from .gradient import AttackResult, GradientAttack, NotFinite, check_pixels, objective_for
from .library import LibraryAttack
from .probes import compare, judge, probe
from .rap import RAP
from .spec import AttackSpec, specs_from_cfg
from .surrogates import Surrogate, load_surrogate
from .units import parse_255

__all__ = [
    "Aimed",
    "AttackChecks",
    "AttackResult",
    "AttackSpec",
    "GradientAttack",
    "NotFinite",
    "LibraryAttack",
    "RAP",
    "Surrogate",
    "aims_of",
    "check_pixels",
    "gradient_attack",
    "compare",
    "judge",
    "load_surrogate",
    "objective_for",
    "parse_255",
    "parts_of",
    "probe",
    "run_attack",
    "specs_from_cfg",
    "summarise",
    "tower_in",
    "verify",
]
