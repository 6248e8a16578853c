"""The settings that an attack takes beside the common ones: their names, defaults and limits.

Three kinds of attack have such settings (``KWARGS`` in a config): the members of the PGD family,
RAP, and the classes of the library torchattacks, which go by ``torchattacks:CLASS``. The library
is imported when such a class is asked for, not before.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from ..utils.errors import UserError, nearest
from .surrogates import check_surrogate
from .units import in_255, parse_255

# --- the PGD family ------------------------------------------------------------------------------

_MOMENTUM = {"momentum": (1.0, 0.0, 1e6)}  # setting -> default, least, most
_DIVERSITY = {"probability": (0.5, 0.0, 1.0), "resize": (0.9, 0.01, 1.0)}
FAMILY = {
    "pgd": {},
    "fgsm": {},
    "mi": _MOMENTUM,
    "di": _DIVERSITY,
    "mdi": _MOMENTUM | _DIVERSITY,
}
AIMS = ("likeliest", "random")


def family_settings(name: str, kwargs: Mapping) -> dict:
    """Return the settings of a member of the PGD family with their defaults filled in.

    Args:
        name: a key of :data:`FAMILY`.
        kwargs: ``momentum``; ``probability`` and ``resize`` of input diversity; for every member
            ``aim``, the class a targeted attack heads for: ``likeliest`` (of the wrong ones),
            ``random`` or a number. Without ``aim`` the attack is untargeted and none is returned.

    Raises:
        UserError: a setting is unknown or out of range.
    """
    limits, settings = FAMILY[name], {key: value[0] for key, value in FAMILY[name].items()}
    for key, value in kwargs.items():
        if key == "aim":
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if not whole and value not in AIMS:
                raise UserError(
                    f"attack '{name}': KWARGS.aim is {value!r}, expected likeliest, random or the "
                    "number of a class"
                )
        elif key not in limits:
            hint = nearest(key, [*limits, "aim"])
            raise UserError(f"attack '{name}' takes no setting '{key}'.{hint}")
        else:
            value = _number(name, key, value, *limits[key][1:])
        settings[key] = value
    return settings


def _number(name: str, key: str, value, least: float, most: float) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and least <= value <= most):
        raise UserError(
            f"attack '{name}': KWARGS.{key} is {value!r}, expected a number from "
            f"{least:g} to {most:g}"
        )
    return float(value)


# --- RAP -----------------------------------------------------------------------------------------

LABELS = ("auto", "dataset", "surrogate")
RAP = {
    "surrogate": "torchvision:resnet50",  # AdvPT's paper; with torchvision's first weights
    "labels": "auto",  # ours, see surrogates.py
    "late_start": 100,  # steps before the reverse perturbation: RAP-LS of its paper, AdvPT's code
    "inner_steps": 8,  # of the reverse perturbation, each inner_eps/inner_steps: both authors' code
    "inner_eps": "16/255",  # its radius: both authors' code
    "probability": 0.7,  # of input diversity: both authors' code
    "resize": 0.5,  # its smallest copy: AdvPT's code (112 of 224); RAP's pads 299 to 330 instead
}


def rap_settings(kwargs: Mapping) -> dict:
    """Return the settings of RAP, those not given as in :data:`RAP`.

    Raises:
        UserError: a setting or the surrogate is unknown or out of range.
    """
    settings = RAP | dict(kwargs)
    for key in kwargs:
        if key not in RAP:
            raise UserError(f"attack 'rap' takes no setting '{key}'.{nearest(key, RAP)}")
    if settings["labels"] not in LABELS:
        hint = nearest(settings["labels"], LABELS)
        raise UserError(f"attack 'rap': KWARGS.labels is {settings['labels']!r}.{hint}")
    for key, least in (("late_start", 0), ("inner_steps", 1)):
        value = settings[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(
                f"attack 'rap': KWARGS.{key} is {value!r}, expected an integer >= {least}"
            )
    for key in _DIVERSITY:
        settings[key] = _number("rap", key, settings[key], *_DIVERSITY[key][1:])
    radius = parse_255(settings["inner_eps"], "attack 'rap': KWARGS.inner_eps")
    settings["inner_eps"] = f"{in_255(radius)}/255"
    check_surrogate(settings["surrogate"])
    return settings


# --- torchattacks --------------------------------------------------------------------------------

PREFIX = "torchattacks:"
REFUSED = {
    "VANILA": "it returns the images as they are",
    "MultiAttack": "it is made of other attacks; name each of them in LIST",
    "LGV": "it trains models of its own, which needs more than images and logits",
}
# argument of a class -> the attack's field that fills it
FILLED = {
    "eps": "EPS",
    "max_epsilon": "EPS",
    "alpha": "ALPHA",
    "norm": "NORM",
    "n_restarts": "RESTARTS",
    "steps": "STEPS",
    "num_iter_set": "STEPS",
    "nb_iter": "STEPS",
    "n_queries": "STEPS",
    "max_iterations": "STEPS",
}
HIDDEN = ("seed", "verbose", "update_each_iteration")  # the last one takes single images only
# what a class measures where its arguments do not say it; the others with an eps are L_inf
MEASURES = {
    "PGDL2": "l2",
    "PGDRSL2": "l2",
    "CW": "l2",
    "DeepFool": "l2",
    "EADEN": "l2",
    "GN": "l2",
    "EADL1": "l1",
    "SparseFool": "l0",
    "OnePixel": "l0",
    "Pixle": "l0",
    "JSMA": "l0",
}
BALLS = ("linf", "l2")
# steps where the class' own number is none (GN is noise) or too few to be believed
USUAL_STEPS = {"APGD": 100, "APGDT": 100, "FAB": 100, "AutoAttack": 100, "SPSA": 100, "GN": 0}
LEAST_STEPS = {"EADEN": 10, "EADL1": 10, "GN": 0}  # the first two divide by steps // 10


@dataclass(frozen=True)
class LibraryClass:
    """A class of torchattacks.

    Attributes:
        name: as the library spells it.
        make: the class itself.
        defaults: argument -> default, without the model.
    """

    name: str
    make: type
    defaults: dict

    @property
    def bounded(self) -> bool:
        """Whether it keeps to a ball; the others look for the nearest image that is wrong."""
        return any(FILLED.get(key) == "EPS" for key in self.defaults)

    @property
    def settings(self) -> dict:
        """The arguments left to ``KWARGS``, with their defaults."""
        taken = (*FILLED, *HIDDEN)
        return {key: value for key, value in self.defaults.items() if key not in taken}

    @property
    def steps(self) -> int:
        """The number of steps where none is given."""
        own = [v for k, v in self.defaults.items() if FILLED.get(k) == "STEPS"]
        return USUAL_STEPS.get(self.name, own[0] if own else 1)


@cache
def library_class(name: str) -> LibraryClass:
    """Return the class that ``torchattacks:CLASS`` names, in whatever case.

    Raises:
        UserError: the library is missing, or the class is unknown or of no use here.
    """
    try:
        import torchattacks
    except ImportError as error:
        raise UserError(
            f"attack '{name}' needs the package torchattacks, which cannot be imported ({error}); "
            "pip install torchattacks"
        ) from error
    known = {entry.lower(): entry for entry in torchattacks.__all__}
    asked = name[len(PREFIX) :] if name.lower().startswith(PREFIX) else name
    found = known.get(asked.lower())
    refused = {entry.lower(): why for entry, why in REFUSED.items()}
    usable = sorted(set(known.values()) - set(REFUSED))
    if found is None:
        raise UserError(f"torchattacks has no class {asked!r}.{nearest(asked, usable)}")
    if found.lower() in refused:
        raise UserError(f"{PREFIX}{found} cannot attack here: {refused[found.lower()]}")
    made = getattr(torchattacks, found)
    arguments = list(inspect.signature(made.__init__).parameters.values())[2:]  # self, model
    result = LibraryClass(found, made, {each.name: each.default for each in arguments})
    if not result.bounded and found not in MEASURES:
        raise UserError(
            f"{PREFIX}{found} is not known to this version: what it measures is unclear"
        )
    return result


def library_fields(
    name: str,
    *,
    norm: str = "linf",
    eps: float | None = None,
    alpha: float | None = None,
    steps: int | None = None,
    kwargs: Mapping | None = None,
) -> dict:
    """Return the fields of a spec as the class ``torchattacks:CLASS`` has them.

    What the class does not take is None (``eps`` of an attack without a ball, ``alpha``); what is
    not given is the class' own default, with two exceptions: the step size keeps the default's
    share of eps, and the attacks of :data:`USUAL_STEPS` have that many steps.

    Returns:
        name, norm, eps, alpha, steps, kwargs (all settings of the class).

    Raises:
        UserError: the class, a setting, or a value is refused.
    """
    entry = library_class(name)
    label, defaults = PREFIX + entry.name, entry.defaults
    if not entry.bounded:
        norm, eps = MEASURES[entry.name], None
    else:
        balls = BALLS if "norm" in defaults else (MEASURES.get(entry.name, "linf"),)
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
    takes_steps = entry.name == "AutoAttack" or any(FILLED.get(k) == "STEPS" for k in defaults)
    steps = steps if takes_steps and steps is not None else entry.steps
    least = LEAST_STEPS.get(entry.name, 1)
    if steps < least:
        raise UserError(f"{label} needs at least {least} steps, not {steps}")
    kwargs = _library_settings(entry, kwargs or {})
    return {
        "name": label,
        "norm": norm,
        "eps": eps,
        "alpha": alpha,
        "steps": steps,
        "kwargs": kwargs,
    }


def _library_settings(entry: LibraryClass, kwargs: Mapping) -> dict:
    """Return all settings of a class, JSON-able; those of ``kwargs`` are checked."""
    label, settings = PREFIX + entry.name, entry.settings
    for key, value in kwargs.items():
        if key in FILLED and key in entry.defaults:
            raise UserError(f"{label}: {key} is set by {FILLED[key]}, not by KWARGS.{key}")
        if key not in settings:
            hint = nearest(key, settings) if settings else " It takes none."
            raise UserError(f"{label} takes no setting '{key}'.{hint}")
        usual = entry.settings[key]
        if not _alike(value, usual):
            raise UserError(f"{label}: KWARGS.{key} is {value!r}, expected a value like {usual!r}")
        settings[key] = value
    if "n_classes" in settings and "n_classes" not in kwargs:
        del settings["n_classes"]  # follows from the model
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def _alike(value, usual) -> bool:
    """Tell whether ``value`` can stand where the default is ``usual``."""
    if isinstance(usual, (bool, str)) or isinstance(value, (bool, str)):
        return type(value) is type(usual)
    if isinstance(usual, (int, float)):
        return isinstance(value, (int, float))
    return isinstance(value, (int, float, list, tuple))  # Pixle's ranges
