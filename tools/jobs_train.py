"""One run with the arguments of train.py, for an installation that has no train.py beside it.

    python -m advprompt.tools.jobs_train --root $DATA --seed 1 --trainer AdvPT ...

In a clone jobs call train.py itself; this takes the arguments that a sweep gives.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from . import core
from .cli import run_tool
from .robustness import register_datasets

runs, config = (importlib.import_module(f"{core.__name__}.{name}") for name in ("runs", "config"))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="jobs_train", description=__doc__.split("\n")[0])
    for name in ("root", "output-dir", "dataset-config-file", "config-file", "attack-config-file"):
        p.add_argument(f"--{name}", required=True)
    p.add_argument("--seed", type=int, required=True)
    p.add_argument("--trainer", required=True)
    p.add_argument("--eval-only", action="store_true")
    p.add_argument("--model-dir", default="")
    p.add_argument("opts", nargs=argparse.REMAINDER)
    return p


def setup_cfg(args: argparse.Namespace):
    """Merge as train.py does: defaults, files, arguments and overrides, in this order.

    Raises:
        UserError: a file is missing or a key or value is wrong.
    """
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    core.extend_cfg(cfg)
    for file in (args.dataset_config_file, args.config_file, args.attack_config_file):
        runs.merge_file(cfg, file)
    cfg.INPUT.TRANSFORMS = cfg.DATASET.TRANSFORMS or cfg.INPUT.TRANSFORMS
    cfg.DATASET.ROOT, cfg.OUTPUT_DIR = args.root, args.output_dir
    cfg.TRAINER.NAME, cfg.SEED = args.trainer, args.seed
    runs.merge_opts(cfg, args.opts)
    config.check_cfg(cfg)
    cfg.freeze()
    return cfg


def main(argv: list[str]) -> None:
    """Do the run, unless its record says that it is done."""
    args = parser().parse_args(argv)
    register_datasets()
    runs.start(setup_cfg(args), eval_only=args.eval_only, model_dir=args.model_dir)


if __name__ == "__main__":
    sys.exit(run_tool(main))
