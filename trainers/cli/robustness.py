"""Test finished runs under other threat models; nothing is trained.

    advprompt robustness --model-dir output/shapes/NAPTuning/.../seed1 \\
        --attack-config-file configs/attacks/linf1.yaml configs/attacks/linf4.yaml

The model, its data and its settings are the run's own; only ATTACK.TEST of the attack files is
used. Every file gets a record in RUN/tests/FILE, which ``advprompt report`` finds. An
interrupted test resumes; finished tests are skipped.
"""

import argparse
import os
import re
from pathlib import Path

from ..config import keys, merging
from ..config.identity import refuse_training
from ..engine import run, run_folder
from ..experiments.state import register_datasets
from ..utils.errors import Mistakes

ROOT = os.environ.get("DATA") or "data"


def settings(folder: str, attack_file: str, root: str, opts: list[str]):
    """Return a test's configuration and run; UserError for no run, or a wrong file or override."""
    cfg = keys.default_cfg()
    stored, tested = run_folder.stored(folder)
    kept = {k: v for k, v in stored.items() if not k.startswith("ATTACK.TEST.")}
    run_folder.restore(cfg, kept, folder)
    train = cfg.ATTACK.TRAIN.clone()
    mistakes = Mistakes()
    mistakes.of(merging.merge_file, cfg, attack_file, "attacks")
    cfg.ATTACK.TRAIN = train  # the file's belongs to runs that it trained
    cfg.DATASET.ROOT, cfg.OUTPUT_DIR = root, ""
    cfg.DATALOADER.NUM_WORKERS = 0  # of the training data, which is not read
    cfg.DATALOADER.TEST.BATCH_SIZE = 100
    mistakes.of(merging.merge_opts, cfg, opts)
    keys.check_cfg(cfg, mistakes)
    refuse_training(opts[::2])
    cfg.freeze()
    return cfg, tested.get("model_dir") or folder


def name_of(attack_file: str, opts: list[str], epoch: int | None) -> str:
    """Return the name of a test's folder."""
    name = Path(attack_file).stem + (f"_epoch{epoch}" if epoch is not None else "")
    pairs = zip(opts[::2], opts[1::2], strict=True)
    return name + re.sub(r"[^\w.-]", ".", "".join(f"_{key}-{value}" for key, value in pairs))


def main(argv: list[str]) -> None:
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser("advprompt robustness", description=about, allow_abbrev=False)
    add = parser.add_argument
    add("--model-dir", required=True, nargs="+", help="run folders")
    add("--attack-config-file", required=True, nargs="+", help="yaml files, or names: linf1")
    add("--root", default=ROOT, help="folder of the data sets (default: $DATA, else data)")
    add("--load-epoch", type=int, help="epoch to load (default: best, else newest)")
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides")
    args = parser.parse_args(argv)
    register_datasets()
    jobs = [  # check all of them first: a mistake in the last one must not cost hours
        (*settings(folder, file, args.root, args.opts), name_of(file, args.opts, args.load_epoch))
        for folder in args.model_dir
        for file in args.attack_config_file
    ]
    for cfg, folder, name in jobs:
        run.start(cfg, eval_only=True, model_dir=folder, load_epoch=args.load_epoch, test_name=name)
