"""One run: train and test what a configuration describes, or whatever of it is left to do."""

import os
import sys
from pathlib import Path

import torch
from dassl.engine import build_trainer
from dassl.utils import collect_env_info, set_random_seed, setup_logger

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

    Returns the folder of the record. UserError if the folder cannot be written, holds another run,
    or the model does not fit.

    Args:
        cfg: its ``OUTPUT_DIR`` is the folder of the run; "" with ``eval_only``: ``model_dir``.
        eval_only: test the model of the run folder ``model_dir``, at ``load_epoch`` if given.
        no_train: build everything, and stop there.
        test_name: of the folder in ``tests``; "" for a name that says what is tested.
    """
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        raise UserError(
            f"{os.environ['WORLD_SIZE']} processes were started, but one process does a whole run; "
            "start it with python, and several runs at a time with 'python -m advprompt sweep'"
        )
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    asked = {"eval_only": eval_only, "model_dir": model_dir, "load_epoch": load_epoch}
    asked["test_name"] = test_name
    with run_folder.locked(run_folder.place_of(cfg, **asked)):
        task = run_folder.look(cfg, **asked)
        if task.state == "done":
            run_folder.clear(task.record)
            if note := check_listed(cfg, task.record, trained=not eval_only):
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
    setup_logger(task.record)
    sys.stdout.file = Visible(sys.stdout.file)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # attacks are measured in true float32
    # long, and rarely read: into log.txt rather than onto the screen
    log = getattr(sys.stdout, "file", None) or sys.stdout
    print(f"** Config **\n{cfg}\n** Environment **\n{collect_env_info()}", file=log)
    trainer = build_trainer(cfg)
    trainer.task = task
    if asked["eval_only"]:
        trainer.load_model(asked["model_dir"], epoch=asked["load_epoch"])
    elif isinstance(trainer, RobustTrainer):
        trainer.check_training()
        trainer.load_init_weights()
    run_folder.claim(cfg, task, **asked)  # only now: a mistake must not reserve the folder
    if asked["eval_only"]:
        trainer.test()
    elif not no_train:
        try:
            trainer.train()
        except OSError as error:  # of Dassl's loaders; one in a worker process has its traceback
            why = reason(error).strip().splitlines()[-1].removeprefix("OSError: ")
            raise UserError(f"training stopped, its checkpoints are kept: {why}") from error
