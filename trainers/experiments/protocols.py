"""What can be run: the tables in configs/experiments/, and the default threat models."""

from collections.abc import Collection
from functools import cache

import yaml

from ..config import shipped

ZERO_SHOT = "ZeroshotCLIP"
PROTOCOLS = ("main", "base2new", "xd", "dg")


@cache
def table(name: str) -> dict:
    """Return a yaml file of configs/experiments: protocols, ablations, papers or results."""
    path = shipped.configs_folder() / "experiments" / f"{name}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def is_tiny(config: str) -> bool:
    """Return True for configs of the built-in model."""
    return config.startswith("tiny")


def default_threat(trainer: str, config: str, dataset: str, known: Collection[str]) -> str:
    """Return the threat model, one of ``known``, of a run that names none.

    ``trainer`` is "" for one threat model that all methods share.
    """
    if trainer in ("AdvPT", ZERO_SHOT):  # AdvPT's paper has one of its own
        return "advpt_tiny" if is_tiny(config) else "advpt16"
    if not is_tiny(config):
        return "linf1"
    # the built-in model breaks at a different radius on every data set
    return f"tiny_{dataset}" if f"tiny_{dataset}" in known else "linf4_tiny"


def training_threat(trainer: str, config: str, threat: str) -> str:
    """Return the threat model whose ATTACK.TRAIN a trainer uses when it is tested under ``threat``.

    AdvPT makes its bank without any text, so other threat models cannot say how.
    """
    if trainer == "AdvPT" and not threat.startswith("advpt"):
        return default_threat(trainer, config, "", ())
    return threat
