"""Settings as a record keeps them: one flat dict of JSON values."""

import math


def flat_config(config) -> dict:
    """Return a yacs node (or nested dict) as one flat dict ``{"OPTIM.LR": 0.002, ...}``.

    Tuples become lists; paths and infinite numbers become strings, so that the result is JSON.
    """
    flat: dict = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": v for inner, v in flat_config(value).items()}
        else:
            flat[str(key)] = _as_json(value)
    return flat


def _as_json(value):
    if isinstance(value, dict):
        return {str(k): _as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(v) for v in value]
    return value if is_json(value) else str(value)


def is_json(value) -> bool:
    """Return True if ``value`` is made of JSON's types, with finite numbers."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and is_json(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, bool, int))
