"""Train and test with CoOp's command line: train.py of the clone, ``advprompt train`` elsewhere.

Started in the folder of a fork, it knows the fork's data sets, trainers and settings as well.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY

from ..config import host, keys, merging
from ..engine import run, run_folder
from ..experiments import state
from ..utils import distributed
from ..utils.errors import UserError, nearest

WHAT = ("eval_only", "model_dir", "load_epoch", "test_name")  # a run besides its configuration


def parser() -> argparse.ArgumentParser:
    script = Path(sys.argv[0]).name == "train.py"
    p = argparse.ArgumentParser(
        prog="train.py" if script else "advprompt train",
        description="Train and test with CoOp's command line.",
    )
    p.add_argument("--root", default="", help="folder of the data sets (CoOp's $DATA)")
    p.add_argument("--output-dir", default="", help="folder of this run")
    p.add_argument("--resume", default="", help="folder whose checkpoint to continue from")
    p.add_argument("--seed", type=int, default=-1, help="0 or more fixes all draws")
    p.add_argument("--source-domains", nargs="+", help="source domains (DA/DG)")
    p.add_argument("--target-domains", nargs="+", help="target domains (DA/DG)")
    p.add_argument("--transforms", nargs="+", help="data augmentation")
    p.add_argument("--config-file", default="", help="yaml of the trainer")
    p.add_argument("--dataset-config-file", default="", help="yaml of the data set")
    p.add_argument("--attack-config-file", default="", help="yaml of the threat model")
    p.add_argument("--test-attack-config-file", default="", help="its ATTACK.TEST instead")
    p.add_argument("--trainer", default="", help="name of the trainer")
    p.add_argument("--backbone", default="", help="name of the CLIP backbone")
    p.add_argument("--head", default="", help="name of the head (unused by prompt methods)")
    p.add_argument("--eval-only", action="store_true", help="test a trained model")
    p.add_argument("--model-dir", default="", help="run folder to load the model from")
    p.add_argument("--load-epoch", type=int, help="epoch to load (default: best, else newest)")
    p.add_argument("--test-name", default="", help="of the record's folder in RUN/tests")
    p.add_argument("--no-train", action="store_true", help="do not call trainer.train()")
    p.add_argument("--dry-run", action="store_true", help="say what would be done")
    p.add_argument("opts", nargs=argparse.REMAINDER, help="yacs overrides: KEY VALUE ...")
    return p


def build_cfg(words: list[str]):
    """Return the configuration of these arguments."""
    return setup_cfg(parser().parse_args(words))


def setup_cfg(args: argparse.Namespace):
    """Merge defaults, files, arguments and overrides, in this order (as CoOp does).

    Raises:
        UserError: a file is missing or a key or value is wrong.
    """
    state.register_datasets()
    cfg = get_cfg_default()
    host.extend_cfg(cfg)
    keys.extend_cfg(cfg)
    for file in (args.dataset_config_file, args.config_file, args.attack_config_file):
        if file:
            merging.merge_file(cfg, file)
    if args.test_attack_config_file:
        keys.merge_test_attacks(cfg, args.test_attack_config_file)
    # a data set knows what keeps its labels; the command line has the last word
    cfg.INPUT.TRANSFORMS = cfg.DATASET.TRANSFORMS or cfg.INPUT.TRANSFORMS
    given = {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
    }
    for key, value in given.items():
        if value:
            merging.merge(cfg, key, value, "on the command line")
    if args.seed >= 0:
        cfg.SEED = args.seed
    merging.merge_opts(cfg, args.opts)
    if args.eval_only and cfg.OUTPUT_DIR == get_cfg_default().OUTPUT_DIR:
        cfg.OUTPUT_DIR = ""  # none was given: into the folder of the tested run
    cfg.TRAINER.NAME = _ours(cfg.TRAINER.NAME)
    _known(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names(), "data set", "DATASET.NAME")
    keys.check_cfg(cfg)
    cfg.freeze()
    return cfg


def _ours(name: str) -> str:
    """Return the name under which our trainer is registered: a fork may have one of its name."""
    _known(name, TRAINER_REGISTRY.registered_names(), "trainer", "--trainer")
    if keys.method_called(name) is None and host.folder():
        raise UserError(
            f"trainer {name!r} is the fork's own, and this is the command line of advprompt; run "
            "it with the fork's train.py"
        )
    return keys.registered_name(name)


def _known(name: str, choices, what: str, key: str) -> None:
    if name not in choices:
        raise UserError(f"{what} {name!r} ({key}) is unknown.{nearest(name, choices)}")


def main(argv: list[str]) -> int:
    """Do the run, or say what it would do."""
    args = parser().parse_args(argv)
    if "--dry-run" in args.opts:  # after the overrides
        args.opts.remove("--dry-run")
        args.dry_run = True
    what = {name: getattr(args, name) for name in WHAT}
    if args.dry_run:
        return dry_run(setup_cfg(args), what)
    with distributed.processes():
        run.start(setup_cfg(args), **what, no_train=args.no_train)
    return 0


def dry_run(cfg, what: dict) -> int:
    """Print what is left of a run and what is missing for it; load and write nothing.

    Raises:
        UserError: the run would be refused.
    """
    task = run_folder.look(cfg, **what)
    begun = (Path(task.run) / run_folder.CONFIG_FILE).is_file()
    found = {"train": "resume" if begun else "run"}.get(task.state, task.state)
    print(f"{found}  {task.record}\n\n{state.summary(Counter([found]))}")
    for text in state.missing([cfg]) if found != "done" else ():
        print(f"note: {text}")
    return 0
