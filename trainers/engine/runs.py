"""A run's folder and configuration: merging with clear errors, skipping and resuming safely."""

from __future__ import annotations

import os
import random
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import collect_env_info, set_random_seed, setup_logger

from ..config.host import PREFIX
from ..config.identity import NEUTRAL
from ..config.keys import defaults, registered_name
from ..config.merging import merge
from ..records import completed_record, flat_config, write_record
from ..utils import distributed
from ..utils.errors import UserError
from ..utils.io import read_json, sha256_file, writable_dir, write_json
from .exports import weights_file
from .trainer import RobustTrainer

CONFIG_FILE = "config.json"
RETESTS = "robustness"  # folder in a run's for tests under other threat models
TESTED = ("eval_only", "model_dir", "load_epoch")  # what a run that only tests adds to its settings
VOLATILE = NEUTRAL


def is_done(cfg, **facts) -> bool:
    """Tell whether the run folder ``cfg.OUTPUT_DIR`` holds this run's completed record.

    Args:
        facts: what makes the run besides its configuration.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    folder, mine = Path(cfg.OUTPUT_DIR), _identity(cfg, facts)
    if (folder / CONFIG_FILE).is_file():
        theirs = read_json(folder / CONFIG_FILE)
        before = defaults() | theirs  # a key that came later had its default then
        for key in sorted(set(mine) & set(before) | set(facts)):
            if mine[key] != before.get(key):
                raise UserError(
                    f"'{folder}' holds a run with {key} = {before.get(key)!r}, this one has "
                    f"{mine[key]!r}; choose another output folder or move the old run away"
                )
    return completed_record(folder) is not None


def test_facts(eval_only: bool, model_dir: str, load_epoch: int | None) -> dict:
    """Return what a run that only tests has besides its configuration; nothing for others."""
    if not eval_only:
        return {}
    where = os.path.abspath(model_dir) if model_dir else ""
    return {"eval_only": True, "model_dir": where, "load_epoch": load_epoch}


def same_test(mine: dict, theirs: dict) -> bool:
    """Tell whether two tests of one model are the same, but for what ``TEST.PROTOCOL`` says.

    Args:
        mine, theirs: their flat configurations.
    """
    mine, theirs = defaults() | mine, defaults() | theirs  # a key that came later had its default
    keys = (set(mine) & set(theirs)) - set(VOLATILE) - {"TEST.PROTOCOL"}
    return all(mine[key] == theirs[key] for key in keys)


def record_of_same_test(cfg, model_dir: str) -> dict | None:
    """Return the record for this test where the run ``model_dir`` has made it already, else None.

    The source of a cross-dataset or domain-shift table has been tested at the end of its
    training, or since: the same model, images and attacks need no second measurement.
    """
    if cfg.TEST.PROTOCOL not in ("xd", "dg") or not model_dir:
        return None
    config = flat_config(cfg)
    for folder in (model_dir, *sorted(Path(model_dir).glob(f"{RETESTS}/*"))):
        record = completed_record(folder)
        tested = stored(folder)[1] if record else {}  # which the record does not tell
        final = tested.get("load_epoch") is None
        own = tested.get("model_dir") in (None, os.path.abspath(model_dir))
        if record and final and own and same_test(config, record["config"]):
            break
    else:
        return None
    return record | {
        "protocol": cfg.TEST.PROTOCOL,
        "source": record["dataset"],
        "config": record["config"] | {key: config[key] for key in ("TEST.PROTOCOL", "OUTPUT_DIR")},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def claim(cfg, **facts) -> None:
    """Take the run folder for this configuration: other ones are refused from now on."""
    write_json(Path(cfg.OUTPUT_DIR) / CONFIG_FILE, _identity(cfg, facts))


def _identity(cfg, facts: dict) -> dict:
    """Return what makes a run: its settings, facts, and the content of what it starts from."""
    settings = _settings(cfg)
    settings["TRAINER.NAME"] = settings["TRAINER.NAME"].removeprefix(PREFIX)
    begin = settings.get("MODEL.INIT_WEIGHTS")
    if begin and not facts.get("eval_only"):
        settings["init_sha256"] = sha256_file(weights_file(begin))
    return settings | facts


def _settings(cfg) -> dict:
    return {k: v for k, v in flat_config(cfg).items() if k not in VOLATILE}


def start(cfg, *, eval_only=False, model_dir="", load_epoch=None, no_train=False) -> None:
    """Do the run that ``cfg`` describes in ``cfg.OUTPUT_DIR``, unless its record says it is done.

    Args:
        eval_only: test the model of the run folder ``model_dir``, at ``load_epoch`` if given.
        no_train: build everything, and stop there.

    Raises:
        UserError: the folder cannot be written, holds another run, or the model does not fit.
    """
    _check_processes(cfg.TRAINER.NAME)
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    elif distributed.world() > 1:  # no seed, but the same for all
        set_random_seed(distributed.agree(lambda: random.randrange(2**32)))
    writable_dir(cfg.OUTPUT_DIR)
    tested = test_facts(eval_only, model_dir, load_epoch)
    distributed.check_same("settings", lambda: _settings(cfg) | tested)
    if distributed.agree(lambda: _nothing_left(cfg, tested, model_dir)):
        return
    if distributed.is_main():
        setup_logger(cfg.OUTPUT_DIR)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # attacks are measured in true float32
    if distributed.is_main():
        # long, and rarely read: into log.txt rather than onto the screen
        log = getattr(sys.stdout, "file", None) or sys.stdout
        print(f"** Config **\n{cfg}\n** Environment **\n{collect_env_info()}", file=log)
    with distributed.main_first():  # what it draws or fetches is there for the others
        trainer = build_trainer(cfg)
    trainer.claimed = True  # below, once nothing speaks against it
    if eval_only:
        trainer.load_model(model_dir, epoch=load_epoch)
    elif isinstance(trainer, RobustTrainer):
        trainer.check_training()
        trainer.load_init_weights()
    if distributed.is_main():
        claim(cfg, **tested)  # only now: a mistake mended must not find its folder taken
    if eval_only:
        trainer.test()
    elif not no_train:
        try:
            trainer.train()
        except (
            OSError
        ) as error:  # from Dassl's loaders; one in a worker process brings its traceback
            why = str(error).strip().splitlines()[-1].removeprefix("OSError: ")
            raise UserError(f"training stopped, its checkpoints are kept: {why}") from error


def _check_processes(trainer: str) -> None:
    """Refuse trainers that would each do the whole run, and write over one another."""
    ours = issubclass(TRAINER_REGISTRY.get(trainer), RobustTrainer)
    if distributed.world() > 1 and not ours:
        raise UserError(
            f"{distributed.world()} processes were started, but trainer {trainer} is the fork's "
            "own and cannot share its work among them; start it with python in place of torchrun"
        )


def _nothing_left(cfg, tested: dict, model_dir: str) -> bool:
    """Tell whether the record is there, or is now, as another run made the same test."""
    if is_done(cfg, **tested):
        print(f"skipped: {cfg.OUTPUT_DIR} holds a completed record of this configuration")
        return True
    final = tested and tested["load_epoch"] is None
    if not (final and (record := record_of_same_test(cfg, model_dir))):
        return False
    claim(cfg, **tested)
    print(f"* record: {write_record(cfg.OUTPUT_DIR, record)} (as tested in {model_dir})")
    return True


def restore(cfg, settings: dict, where) -> None:
    """Merge the settings of a stored run; keys that only another version knows are left out."""
    known = set(flat_config(cfg))
    for key, value in settings.items():
        if key in known:
            merge(cfg, key, value, f"in '{where}'")
    cfg.TRAINER.NAME = registered_name(cfg.TRAINER.NAME)


def stored(folder) -> tuple[dict, dict]:
    """Return the settings of the run in ``folder`` and, if it only tested, of which model.

    Raises:
        UserError: the folder holds no run.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"'{folder}' holds no run (there is no {CONFIG_FILE}); give the folder that "
            "--output-dir named, such as output/shapes/NAPTuning/tiny_tiny_shapes_16shots/seed1"
        )
    settings = read_json(path)
    return settings, {k: settings.pop(k) for k in TESTED if k in settings}
