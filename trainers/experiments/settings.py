"""What a run's yaml files and overrides ask for, and what of it is recorded in its folder.

One configuration is built for all shots and seeds, so ten thousand runs are looked at in seconds.
Where this look is unsure, the run is started, and the engine decides: it skips what is done and
refuses a folder that holds something else.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from yacs.config import CfgNode

from ..config import identity, keys, merging
from ..engine import run_folder
from ..records import flat_config
from ..utils.errors import Mistakes, UserError


class Asked(NamedTuple):
    """A configuration; its settings, flat: all of them, those of training and of test; a fact."""

    cfg: CfgNode
    all: dict
    training: dict
    test: dict
    attacked: bool  # the trainer sees attacked images in training


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is asked to be."""

    trainer: str
    files: tuple[str, ...]  # yaml files in the order of merging
    test_file: str  # one whose ATTACK.TEST replaces theirs
    opts: tuple[str, ...]  # overrides, KEY VALUE in turn
    shots: int  # of this run, as the seed; what differs most often
    seed: int

    def _asked(self) -> Asked:
        return _asked(self.trainer, self.files, self.test_file, self.opts)

    def _own(self, settings: dict) -> dict:
        own = {"SEED": self.seed, "DATASET.NUM_SHOTS": self.shots}
        return settings | {key: value for key, value in own.items() if key in settings}

    def cfg(self) -> CfgNode:
        """Return a configuration with everything but the trainer's name and the folders."""
        cfg = self._asked().cfg.clone()
        cfg.DATASET.NUM_SHOTS, cfg.SEED = self.shots, self.seed
        return cfg

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
        if test["DEFENCE.NAME"] or test["TEST.SAVE_ADV"]:
            return False
        node, entries = test["ATTACK.TEST.TARGET"], test["ATTACK.TEST.LIST"] or [{}]
        return "embedding" in [entry.get("TARGET", node) for entry in entries]


def differing(mine: Mapping, theirs: Mapping) -> str:
    """Return the first key of ``mine`` that ``theirs`` has otherwise, else ""."""
    known = keys.formerly(theirs.get("TRAINER.NAME", "")) | theirs  # a later key is as it was then
    return next((key for key, value in mine.items() if known.get(key, value) != value), "")


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
    cfg, mistakes = keys.default_cfg(), Mistakes()  # train.py reports them
    for file in files:
        mistakes.of(merging.merge_file, cfg, file)
    if test_file:
        mistakes.of(keys.merge_test_attacks, cfg, test_file)
    cfg.INPUT.TRANSFORMS = cfg.DATASET.TRANSFORMS or cfg.INPUT.TRANSFORMS
    mistakes.of(merging.merge_opts, cfg, list(opts))
    flat = {k: v for k, v in flat_config(cfg).items() if not identity.is_neutral(k)}
    flat.pop("TRAINER.NAME")  # it is in the folder's name, and other in some forks
    method, attacked, training = keys.method_called(trainer), True, identity.training(flat)
    if method:
        attacked = method.is_adversarial(cfg)
        trained = {"trained": method.trainable, "attacked": attacked}
        training = identity.used(flat, method.nodes(), **trained)
    return Asked(cfg, flat, training, identity.of_test(flat), attacked)
