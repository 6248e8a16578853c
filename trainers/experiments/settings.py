"""What a run's yaml files and overrides ask for, and what of it is recorded in its folder.

No configuration is built, so ten thousand runs are looked at in seconds. Where this look is unsure,
the run is started, and the engine decides: it skips what is done and refuses a folder that holds
something else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from yacs.config import CfgNode

from .. import records
from ..config import identity, keys
from ..config.declared import is_text
from ..config.merging import THREAT, literal
from ..config.shipped import config_file
from ..engine import run_folder
from ..utils.errors import UserError
from ..utils.io import read_yaml


class Asked(NamedTuple):
    """Flat settings: all of them, those of the training, those of the test; and a fact."""

    all: dict
    training: dict
    test: dict
    attacked: bool  # the trainer sees attacked images in training


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is asked to be.

    Attributes:
        trainer: its name.
        files: yaml files in the order of merging; ``test_file``: one whose ATTACK.TEST replaces
            theirs.
        opts: overrides, KEY VALUE in turn.
        shots, seed: of this run; what differs most often.
    """

    trainer: str
    files: tuple[str, ...]
    test_file: str
    opts: tuple[str, ...]
    shots: int
    seed: int

    def _asked(self) -> Asked:
        return _asked(self.trainer, self.files, self.test_file, self.opts)

    def _own(self, settings: dict) -> dict:
        own = {"SEED": self.seed, "DATASET.NUM_SHOTS": self.shots}
        return settings | {key: value for key, value in own.items() if key in settings}

    def asked(self) -> dict:
        """Return every setting, flat, but for those that change nothing."""
        return self._own(self._asked().all)

    def training(self) -> dict:
        """Return the settings that the training depends on."""
        return self._own(self._asked().training)

    def test(self) -> dict:
        """Return the settings that the test depends on, given the model."""
        return self._asked().test

    def attacked(self) -> bool:
        """Return True if the trainer sees attacked images in training."""
        return self._asked().attacked

    def embeddings(self) -> bool:
        """Return True if a test attacks the image tower alone, for all prompts at once."""
        test = self.test()
        if test.get("DEFENCE.NAME") or _plain(test.get("TEST.SAVE_ADV")) is True:
            return False
        node, entries = test["ATTACK.TEST.TARGET"], _plain(test["ATTACK.TEST.LIST"]) or [{}]
        return "embedding" in [e.get("TARGET", node) for e in entries if isinstance(e, dict)]


def differing(mine: Mapping, theirs: Mapping) -> str:
    """Return the first key of ``mine`` that ``theirs`` has otherwise, else ""."""
    known = keys.formerly(theirs.get("TRAINER.NAME", ""))
    for key, value in mine.items():
        other = theirs.get(key, known.get(key))  # a later key counts as it was then
        if other != value and (is_text(key) or _plain(other) != _plain(value)):
            return key
    return ""


def recorded(settings: Settings, folder: str) -> tuple[dict | None, Path | None]:
    """Return the completed record of this test in a run's folder, and the folder of a record."""
    mine, place = settings.test(), None
    with contextlib.suppress(UserError):  # a damaged record, which the run will name
        for place, theirs, record in run_folder.tests_in(folder):
            if theirs["load_epoch"] is None and not differing(mine, theirs):
                return record, place
    return None, place


@cache
def _asked(trainer: str, files: tuple[str, ...], test_file: str, opts: tuple[str, ...]) -> Asked:
    given = dict(zip(opts[::2], opts[1::2], strict=True))  # the last one counts
    threat = [str(config_file("attacks", given.pop(THREAT)))] if THREAT in given else []
    flat = dict(keys.defaults())
    for file in (*files, *threat):
        flat |= _read(file)
    if test_file:
        own = keys.defaults() | _read(test_file)
        flat = {k: (own.get(k) if k.startswith("ATTACK.TEST.") else v) for k, v in flat.items()}
    if _plain(flat.get("DATASET.TRANSFORMS")):  # these replace the trainer's
        flat["INPUT.TRANSFORMS"] = flat["DATASET.TRANSFORMS"]
    flat = {k: v for k, v in (flat | given).items() if not identity.is_neutral(k)}
    flat.pop("TRAINER.NAME", None)  # it is in the folder's name, and other in some forks
    method, attacked, training = keys.method_called(trainer), True, identity.training(flat)
    if method:
        attacked = method.is_adversarial(_node(flat, method.node))
        trained = {"trained": method.trainable, "attacked": attacked}
        training = identity.used(flat, method.nodes(), **trained)
    return Asked(flat, training, identity.of_test(flat), attacked)


def _node(flat: Mapping, name: str) -> CfgNode:
    """Return a configuration of one trainer's own keys, enough to ask the trainer about them."""
    head = f"TRAINER.{name}."
    own = {k.removeprefix(head): _plain(v) for k, v in flat.items() if k.startswith(head)}
    return CfgNode({"TRAINER": {name: {k: v for k, v in own.items() if "." not in k}}})


@cache
def _read(file: str) -> dict:
    """Return the flat settings of a yaml file; train.py says what is wrong with one."""
    try:
        flat = records.flat_config(read_yaml(file))
    except UserError:
        return {}
    threat = flat.pop(THREAT, "")
    return (_read(str(config_file("attacks", threat))) if threat else {}) | flat


def _plain(value):
    """Return a setting so that the ways to write it compare equal: ``(2, 2)``, ``4``, ``"4"``."""
    if isinstance(value, str):
        value = literal(value)
        return value if isinstance(value, str) else _plain(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
