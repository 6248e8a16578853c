"""The attack classes of torchattacks: what each takes, measures, and needs.

The library is an optional extra, imported only when such a class is used.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from ..records.threats import LIBRARY, NORMS
from ..utils.errors import UserError, nearest

REFUSED = {
    "VANILA": "it returns the images as they are",
    "MultiAttack": "it is made of other attacks; name each of them in LIST",
    "LGV": "it trains models of its own, which needs more than images and logits",
}
_FIELDS = {  # an attack's field -> the arguments of classes that it fills
    "EPS": ("eps", "max_epsilon"),
    "ALPHA": ("alpha",),
    "NORM": ("norm",),
    "RESTARTS": ("n_restarts",),
    "STEPS": ("steps", "num_iter_set", "nb_iter", "n_queries", "max_iterations"),
}
FILLED = {argument: field for field, arguments in _FIELDS.items() for argument in arguments}
HIDDEN = ("seed", "verbose", "update_each_iteration")  # the last one takes single images only
# what a class measures where its arguments do not show it; the others with an eps are L_inf
MEASURES = {
    **dict.fromkeys(("PGDL2", "PGDRSL2", "CW", "DeepFool", "EADEN", "GN"), "l2"),
    "EADL1": "l1",
    **dict.fromkeys(("SparseFool", "OnePixel", "Pixle", "JSMA"), "l0"),
}
# steps where the class' own number is none (GN is noise) or too few to be believed
USUAL_STEPS = {"APGD": 100, "APGDT": 100, "FAB": 100, "AutoAttack": 100, "SPSA": 100, "GN": 0}
LEAST_STEPS = {"EADEN": 10, "EADL1": 10, "GN": 0}  # the first two divide by steps // 10


@dataclass(frozen=True)
class LibraryClass:
    """A class of torchattacks, ``make``, by its name there, with its arguments' defaults."""

    name: str
    make: type
    defaults: dict

    @property
    def bounded(self) -> bool:
        """Whether it keeps to a ball; the others look for the nearest image that is wrong."""
        return self.takes("EPS")

    def takes(self, field: str) -> bool:
        """Return True if an argument is filled by the attack's ``field``."""
        return any(FILLED.get(key) == field for key in self.defaults)

    @property
    def steps(self) -> int:
        """The number of steps where none is given."""
        own = [value for key, value in self.defaults.items() if FILLED.get(key) == "STEPS"]
        return USUAL_STEPS.get(self.name, own[0] if own else 1)


@cache
def library_class(name: str) -> LibraryClass:
    """Return the class of a name, in any case; UserError if it, or torchattacks, does not exist."""
    try:
        import torchattacks
    except ImportError as error:
        raise UserError(
            f"attack '{name}' needs the package torchattacks, which cannot be imported ({error}); "
            "install it with: pip install --no-deps torchattacks"
        ) from error
    asked = name[len(LIBRARY) :]
    known = {entry.lower(): entry for entry in torchattacks.__all__}
    found = known.get(asked.lower())
    if found is None:
        hint = nearest(asked, set(known.values()) - set(REFUSED))
        raise UserError(f"torchattacks has no class {asked!r}.{hint}")
    if found in REFUSED:
        raise UserError(f"{LIBRARY}{found} cannot attack here: {REFUSED[found]}")
    made = getattr(torchattacks, found)
    arguments = list(inspect.signature(made.__init__).parameters.values())[2:]  # self, model
    result = LibraryClass(found, made, {each.name: each.default for each in arguments})
    if not result.bounded and found not in MEASURES:
        raise UserError(f"{LIBRARY}{found} is unknown to this version: what it measures is unclear")
    return result


def library_fields(name: str, norm: str, eps, alpha, steps, kwargs: Mapping) -> dict:
    """Return name, norm, eps, alpha, steps and kwargs (all settings) of ``torchattacks:CLASS``.

    What the class does not take is None (``eps`` of an attack without a ball, ``alpha``). What is
    None is the class' own default, with two exceptions: the step size keeps the default's share of
    eps, and the attacks of :data:`USUAL_STEPS` have that many steps. UserError if the class, a
    setting or a value is refused.
    """
    entry = library_class(name)
    label, defaults, usual = LIBRARY + entry.name, entry.defaults, MEASURES.get(entry.name, "linf")
    if not entry.bounded:
        norm, eps = usual, None
    else:
        balls = tuple(NORMS) if "norm" in defaults else (usual,)
        if norm not in balls:
            raise UserError(
                f"{label} keeps to a ball in {' or '.join(balls)} but NORM is {norm!r}; set NORM "
                f"{balls[0]} and EPS as a radius in it"
            )
        if eps is None:
            raise UserError(f"{label} needs EPS, the radius of its ball")
    if "alpha" not in defaults:
        alpha = None
    elif alpha is None:
        alpha = defaults["alpha"] / defaults["eps"] * eps
    takes_steps = entry.name == "AutoAttack" or entry.takes("STEPS")
    steps = steps if takes_steps and steps is not None else entry.steps
    least = LEAST_STEPS.get(entry.name, 1)
    if steps < least:
        raise UserError(f"{label} needs at least {least} steps, not {steps}")
    fields = {"name": label, "norm": norm, "eps": eps, "alpha": alpha, "steps": steps}
    return fields | {"kwargs": _settings(label, defaults, kwargs)}


def _settings(label: str, defaults: dict, given: Mapping) -> dict:
    """Return the arguments left to KWARGS, JSON-able; those of ``given`` are checked."""
    settings = {key: value for key, value in defaults.items() if key not in (*FILLED, *HIDDEN)}
    for key, value in given.items():
        if key in FILLED and key in defaults:
            raise UserError(f"{label}: {key} is set by {FILLED[key]}, not by KWARGS.{key}")
        if key not in settings:
            hint = nearest(key, settings) if settings else " It takes none."
            raise UserError(f"{label} takes no setting '{key}'.{hint}")
        if not _alike(value, defaults[key]):
            raise UserError(
                f"{label}: KWARGS.{key} is {value!r}, expected a value like {defaults[key]!r}"
            )
        settings[key] = value
    if "n_classes" not in given:
        settings.pop("n_classes", None)  # follows from the model
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def _alike(value, usual) -> bool:
    """Return True if ``value`` can replace the default ``usual``."""
    if isinstance(usual, (bool, str)) or isinstance(value, (bool, str)):
        return type(value) is type(usual)
    if isinstance(usual, (int, float)):
        return isinstance(value, (int, float))
    return isinstance(value, (int, float, list, tuple))  # Pixle's ranges
