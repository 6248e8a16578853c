"""One run: train and test what a configuration describes, or whatever of it is left to do."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import collect_env_info, set_random_seed, setup_logger

from ..config import identity
from ..records import flat_config
from ..utils import distributed
from ..utils.errors import UserError, reason
from ..utils.text import Visible
from . import run_folder
from .data import check_listed
from .trainer import RobustTrainer


def start(
    cfg, *, eval_only=False, model_dir="", load_epoch=None, no_train=False, test_name=""
) -> Path:
    """Do the run that ``cfg`` describes, unless its record is there already.

    A training that is complete is never done again: the model in ``cfg.OUTPUT_DIR`` is tested, and
    the record is kept in its folder ``tests`` where it has one of another test.

    Args:
        cfg: its ``OUTPUT_DIR`` is the folder of the run; "" with ``eval_only``: ``model_dir``.
        eval_only: test the model of the run folder ``model_dir``, at ``load_epoch`` if given.
        no_train: build everything, and stop there.
        test_name: of the folder in ``tests``; "" for a name that says what is tested.

    Returns:
        the folder of the record.

    Raises:
        UserError: the folder cannot be written, holds another run, or the model does not fit.
    """
    _check_processes(cfg.TRAINER.NAME)
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    elif distributed.world() > 1:  # no seed, but the same for all
        set_random_seed(distributed.agree(lambda: random.randrange(2**32)))
    asked = {"eval_only": eval_only, "model_dir": model_dir, "load_epoch": load_epoch}
    asked["test_name"] = test_name
    distributed.check_same("settings", lambda: _settings(cfg) | asked)
    with run_folder.locked(run_folder.place_of(cfg, **asked)):
        task = run_folder.Task(*distributed.agree(lambda: run_folder.look(cfg, **asked)))
        if task.state == "done":
            run_folder.clear(task.record)
            own = {"trained": not eval_only}
            if note := distributed.agree(lambda: check_listed(cfg, task.record, **own)):
                print(note)
            print(f"skipped: {task.record} holds a completed record of this configuration")
        else:
            _work(cfg, task, asked, no_train)
    return Path(task.record)


def _work(cfg, task: run_folder.Task, asked: dict, no_train: bool) -> None:
    if cfg.OUTPUT_DIR != task.run:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = task.run
        cfg.freeze()
    if distributed.is_main():
        setup_logger(task.record)
        sys.stdout.file = Visible(sys.stdout.file)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # attacks are measured in true float32
    if distributed.is_main():
        # long, and rarely read: into log.txt rather than onto the screen
        log = getattr(sys.stdout, "file", None) or sys.stdout
        print(f"** Config **\n{cfg}\n** Environment **\n{collect_env_info()}", file=log)
    with distributed.main_first():  # what it draws or fetches is there for the others
        trainer = build_trainer(cfg)
    trainer.task = task
    if asked["eval_only"]:
        trainer.load_model(asked["model_dir"], epoch=asked["load_epoch"])
    elif isinstance(trainer, RobustTrainer):
        trainer.check_training()
        trainer.load_init_weights()
    if distributed.is_main():
        run_folder.claim(cfg, task, **asked)  # only now: a mistake must not reserve the folder
    if asked["eval_only"]:
        trainer.test()
    elif not no_train:
        try:
            trainer.train()
        except OSError as error:  # of Dassl's loaders; one in a worker process has its traceback
            why = reason(error).strip().splitlines()[-1].removeprefix("OSError: ")
            raise UserError(f"training stopped, its checkpoints are kept: {why}") from error


def _settings(cfg) -> dict:
    return {k: v for k, v in flat_config(cfg).items() if not identity.is_neutral(k)}


def _check_processes(trainer: str) -> None:
    """Refuse trainers that would each do the whole run, and write over one another."""
    ours = issubclass(TRAINER_REGISTRY.get(trainer), RobustTrainer)
    if distributed.world() > 1 and not ours:
        raise UserError(
            f"{distributed.world()} processes were started, but trainer {trainer} is the fork's "
            "own and cannot share its work among them; start it with python in place of torchrun"
        )
