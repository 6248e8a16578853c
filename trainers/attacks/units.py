"""Sizes in 1/255, as configs and records write them."""

from __future__ import annotations

import math

from ..utils.errors import UserError


def parse_255(value, key: str, most: float = 255) -> float:
    """Turn a size given in 1/255 into a float in [0, 1].

    ``4``, ``"4"``, ``4.0`` and ``"4/255"`` all mean 4/255. A bare number between 0 and 0.1 is
    refused, because it is almost surely a fraction of 1 (``0.0157`` for 4/255).

    Args:
        value: number or string from a config.
        key: the config key, for the message.
        most: largest number allowed; radii in L2 may exceed 255.

    Raises:
        UserError: no number, outside 0..``most``, or a fraction of 1.
    """
    text = str(value).strip()
    top, slash, bottom = (part.strip() for part in text.partition("/"))
    try:
        number = float(top)
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or (slash and bottom != "255"):
        raise UserError(f"{key} is {value!r}, which is no size in 1/255; write 4 or 4/255")
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
