"""The settings that an attack takes in addition to the common ones, and how values are checked.

``KWARGS`` of a config: for the PGD family, for RAP (both here), and for the classes of
torchattacks (see :mod:`.library_classes`).
"""

import math
from collections.abc import Callable, Mapping

from ..config.declared import Key
from ..records import threats
from ..records.threats import PGD_FAMILY
from ..utils.errors import UserError, nearest
from .surrogates import check_surrogate

MOST_STEPS = 10**6

# --- checks: (what is set, its value) -> the value to use ----------------------------------------


def parse_255(value, key: str, most: float = 255) -> float:
    """Turn a size given in 1/255 into a float in [0, 1]; ``key`` is named in messages.

    ``4``, ``"4"``, ``4.0`` and ``"4/255"`` all mean 4/255. UserError if it is no number or outside
    0..``most`` (radii in L2 may exceed 255), and for a bare number between 0 and 0.1, which is
    almost surely a fraction of 1 (``0.0157`` for 4/255).
    """
    text = str(value).strip()
    top, slash, bottom = (part.strip() for part in text.partition("/"))
    try:
        number = float(top)
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or (slash and bottom != "255"):
        raise UserError(f"{key} is {value!r}, not a size in 1/255; write 4 or 4/255")
    if not slash and 0 < number < 0.1:
        raise UserError(
            f"{key} is {text}, which looks like a fraction of 1 but is read in 1/255; "
            f"write {in_255(number, 1)} or {in_255(number, 1)}/255"
        )
    if not 0 <= number <= most:
        raise UserError(f"{key} is {text}, outside 0..{most:g} (in 1/255); write 4 or 4/255")
    return number / 255


def in_255(value: float, digits: int = 4) -> str:
    """Return a size in [0, 1] as a number of 1/255, in words."""
    return f"{round(value * 255, digits):g}"


def number(least: float, most: float) -> Callable:
    """Return a check for numbers from ``least`` to ``most``, which become floats."""
    return Key(0.0, least=least, most=most).read


def whole(least: int) -> Callable:
    """Return a check for integers from ``least`` to MOST_STEPS."""
    return Key(0, least=least, most=MOST_STEPS).read


def word(choices) -> Callable:
    """Return a check for one of ``choices``, in upper or lower case."""
    return Key("", choices=tuple(choices), any_case=True).read


def _size(key: str, value) -> str:
    return f"{in_255(parse_255(value, key))}/255"


def _surrogate(key: str, value) -> str:
    check_surrogate(value)
    return value


# --- the settings: (default, check) each ---------------------------------------------------------

MOMENTUM = {"momentum": (1.0, number(0, 1e6))}
DIVERSITY = {"probability": (0.5, number(0, 1)), "resize": (0.9, number(0.01, 1))}
# the gradient of a codebook's nearest entry; None: straight through, as in training
BACKWARD = {"backward": (None, word(threats.BACKWARDS))}
OF_FAMILY = {"mi": MOMENTUM, "di": DIVERSITY, "mdi": MOMENTUM | DIVERSITY}
OF_RAP = {
    "surrogate": ("torchvision:resnet50", _surrogate),  # AdvPT's paper; torchvision's first weights
    "labels": ("auto", word(("auto", "dataset", "surrogate"))),  # ours, see surrogates.py
    "late_start": (100, whole(0)),  # steps before the reverse perturbation: RAP-LS, AdvPT's code
    "inner_steps": (8, whole(1)),  # of it, each inner_eps / inner_steps: both authors' code
    "inner_eps": ("16/255", _size),  # its radius: both authors' code
    "probability": (0.7, number(0, 1)),  # of input diversity: both authors' code
    "resize": (0.5, number(0.01, 1)),  # AdvPT's code (112 of 224); RAP's pads 299 to 330 instead
}
SETTINGS = {name: OF_FAMILY.get(name, {}) | BACKWARD for name in PGD_FAMILY}
SETTINGS |= dict.fromkeys(threats.ADAPTIVE, BACKWARD) | {"rap": OF_RAP}


def settings_of(name: str, given: Mapping) -> dict:
    """Return the settings of a member of the PGD family or of rap, checked and filled in."""
    table = SETTINGS.get(name, {})
    for key in given:
        if key not in table:
            hint = nearest(key, table) if table else " It takes none; leave KWARGS out."
            raise UserError(f"attack '{name}' takes no setting '{key}'.{hint}")
    values = {key: given.get(key, default) for key, (default, _) in table.items()}
    return {
        key: table[key][1](f"attack '{name}': KWARGS.{key}", value)
        for key, value in values.items()
        if value is not None or key in given
    }
