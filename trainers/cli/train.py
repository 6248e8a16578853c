"""Train and test with CoOp's command line: train.py of the clone, ``advprompt train`` elsewhere.

Started in the folder of a fork, it also has the fork's data sets, trainers and settings.
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY

from ..config import host, keys, merging
from ..engine import run, run_folder
from ..engine.data import check_listed
from ..experiments import state
from ..utils.errors import Mistakes, UserError, nearest

WHAT = ("eval_only", "model_dir", "load_epoch", "test_name")  # identify a run, with its settings
OF_COOP = {  # CoOp's arguments -> keys
    "root": "DATASET.ROOT",
    "output_dir": "OUTPUT_DIR",
    "resume": "RESUME",
    "source_domains": "DATASET.SOURCE_DOMAINS",
    "target_domains": "DATASET.TARGET_DOMAINS",
    "transforms": "INPUT.TRANSFORMS",
    "trainer": "TRAINER.NAME",
    "backbone": "MODEL.BACKBONE.NAME",
    "head": "MODEL.HEAD.NAME",
    "seed": "SEED",
}
DRAWN = -1  # --seed of CoOp's command line where none is given
KINDS = {"dataset": "datasets", "": "trainers", "attack": "attacks", "test_attack": "attacks"}


def parser() -> argparse.ArgumentParser:
    script = Path(sys.argv[0]).name == "train.py"
    name, about = "train.py" if script else "advprompt train", "Train and test as CoOp does."
    p = argparse.ArgumentParser(prog=name, description=about)
    add = p.add_argument
    root = os.environ.get("DATA", "")
    add("--root", default=root, help="folder of the data sets (default: $DATA)")
    add("--output-dir", default="", help="folder of this run")
    add("--resume", default="", help="folder whose checkpoint to continue from")
    add("--config-file", default="", help="yaml of the trainer, or a name: AdvPT/vit_b16")
    add("--dataset-config-file", default="", help="yaml of the data set, or its name")
    add("--attack-config-file", default="", help="yaml of the threat model, or its name")
    add("--test-attack-config-file", default="", help="its ATTACK.TEST instead")
    add("--trainer", default="", help="name of the trainer")
    add("--backbone", default="", help="name of the CLIP backbone")
    add("--head", default="", help="name of the head (unused by prompt methods)")
    add("--model-dir", default="", help="run folder to load the model from")
    add("--test-name", default="", help="of the record's folder in RUN/tests")
    add("--seed", type=int, default=DRAWN, help="0 or more fixes all draws")
    add("--source-domains", nargs="+", help="source domains (DA/DG)")
    add("--target-domains", nargs="+", help="target domains (DA/DG)")
    add("--transforms", nargs="+", help="data augmentation")
    add("--eval-only", action="store_true", help="test a trained model")
    add("--load-epoch", type=int, help="epoch to load (default: best, else newest)")
    add("--no-train", action="store_true", help="do not call trainer.train()")
    add("--dry-run", action="store_true", help="print what would be done")
    add("opts", nargs=argparse.REMAINDER, help="yacs overrides: KEY VALUE ...")
    return p


def build_cfg(words: list[str]):
    """Return the configuration of these arguments."""
    return setup_cfg(parser().parse_args(words))


def setup_cfg(args: argparse.Namespace):
    """Merge defaults, files, arguments and overrides, in this order (as CoOp does).

    UserError if a file is missing or a key or value is wrong.
    """
    state.register_datasets()
    cfg = keys.default_cfg()
    nowhere = cfg.OUTPUT_DIR
    mistakes = Mistakes()
    for kind in ("dataset", "", "attack", "test_attack"):
        if name := getattr(args, f"{kind}_config_file".lstrip("_")):
            merge = keys.merge_test_attacks if kind == "test_attack" else merging.merge_file
            mistakes.of(merge, cfg, name, KINDS[kind])
    # a data set states which transforms keep its labels; the command line can override it
    cfg.INPUT.TRANSFORMS = cfg.DATASET.TRANSFORMS or cfg.INPUT.TRANSFORMS
    for name, key in OF_COOP.items():
        if (value := getattr(args, name)) not in (None, "", DRAWN):
            mistakes.of(merging.merge, cfg, key, value, f"(--{name.replace('_', '-')})")
    mistakes.of(merging.merge_opts, cfg, args.opts)
    if args.eval_only and cfg.OUTPUT_DIR == nowhere:
        cfg.OUTPUT_DIR = ""  # none was given: into the folder of the tested run
    cfg.TRAINER.NAME = mistakes.of(_ours, cfg.TRAINER.NAME) or ""
    names = DATASET_REGISTRY.registered_names()
    mistakes.of(_known, cfg.DATASET.NAME, names, "data set", "DATASET.NAME")
    keys.check_cfg(cfg, mistakes)
    cfg.freeze()
    return cfg


def _ours(name: str) -> str:
    """Return the name under which our trainer is registered: a fork may have one of its name."""
    if name not in TRAINER_REGISTRY.registered_names():
        name = keys.ALSO_CALLED.get(name, name)
    _known(name, TRAINER_REGISTRY.registered_names(), "trainer", "--trainer")
    if keys.method_called(name) is None and host.folder():
        raise UserError(
            f"trainer {name!r} is the fork's own, and this is the command line of advprompt; run "
            "it with the fork's train.py"
        )
    return keys.registered_name(name)


def _known(name: str, choices, what: str, key: str) -> None:
    if not name:
        raise UserError(f"no {what} is given ({key}).{nearest('', choices)}")
    if name not in choices:
        raise UserError(f"{what} {name!r} ({key}) is unknown.{nearest(name, choices)}")


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if "--dry-run" in args.opts:  # after the overrides
        args.opts.remove("--dry-run")
        args.dry_run = True
    what = {name: getattr(args, name) for name in WHAT}
    if args.dry_run:
        return dry_run(setup_cfg(args), what)
    run.start(setup_cfg(args), **what, no_train=args.no_train)
    return 0


def dry_run(cfg, what: dict) -> int:
    """Print which jobs of a run remain and what is missing; load and write nothing.

    UserError if the run would be refused.
    """
    task = run_folder.look(cfg, **what)
    if task.state == "done":
        note = check_listed(cfg, task.record, trained=not what["eval_only"])
        print(f"{note}\n" * bool(note), end="")
    begun = (Path(task.run) / run_folder.CONFIG_FILE).is_file()
    found = {"train": "resume" if begun else "run"}.get(task.state, task.state)
    print(f"{found}  {task.record}\n\n{state.summary(Counter([found]))}")
    for text in state.missing([cfg]) if found != "done" else ():
        print(f"note: {text}")
    return 0
