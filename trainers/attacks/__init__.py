"""Gradient attacks on images in [0, 1]: their specification, the loop, their self-checks."""

# ruff: noqa: F401  names that other rooms import

from . import keys  # declares ATTACK
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
