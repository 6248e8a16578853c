"""Test finished runs under other threat models; nothing is trained.

    python -m advprompt robustness --model-dir output/shapes/NAPTuning/.../seed1 \\
        --attack-config-file configs/attacks/linf1.yaml configs/attacks/linf4.yaml

The model, its data and its settings are the run's own; of the attack files only ATTACK.TEST
counts. Every file gets a record of its own in RUN/robustness/FILE, which tools.report finds. What
was killed goes on where it was; what is done is skipped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..config import host, merging
from ..config import keys as config
from ..config.keys import extend_cfg
from ..engine import run, run_folder
from ..utils.entry import run_tool


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="robustness", description=__doc__.split("\n")[0])
    p.add_argument("--model-dir", required=True, nargs="+", help="run folders")
    p.add_argument("--attack-config-file", required=True, nargs="+", help="yaml files")
    p.add_argument("--root", default="data", help="folder of the data sets (default: data)")
    p.add_argument("--load-epoch", type=int, help="epoch to load (default: best, else newest)")
    p.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="overrides, such as TEST.SUBSET 0",
    )
    return p


def register_datasets() -> None:
    """Make the data sets known to Dassl: those of the fork around us, and ours."""
    host.join()
    from .. import datasets  # noqa: F401  registers them


def settings(folder: str, attack_file: str, root: str, opts: list[str], epoch: int | None = None):
    """Return the configuration of one test and the folder of the model it tests.

    Raises:
        UserError: no run there, or a file or an override is wrong.
    """
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    host.extend_cfg(cfg)
    extend_cfg(cfg)
    stored, tested = run_folder.stored(folder)
    kept = {k: v for k, v in stored.items() if not k.startswith("ATTACK.TEST.")}
    run_folder.restore(cfg, kept, folder)
    train = cfg.ATTACK.TRAIN.clone()
    merging.merge_file(cfg, attack_file)
    cfg.ATTACK.TRAIN = train  # the file's belongs to runs that it trained
    cfg.DATASET.ROOT = root
    cfg.DATALOADER.NUM_WORKERS = 0  # of the training data, which is not read
    cfg.DATALOADER.TEST.BATCH_SIZE = 100
    name = Path(attack_file).stem + (f"_epoch{epoch}" if epoch is not None else "")
    for key, value in zip(opts[::2], opts[1::2], strict=False):  # another test, another folder
        name += "".join(c if c.isalnum() or c in ".-_" else "." for c in f"_{key}-{value}")
    cfg.OUTPUT_DIR = str(Path(folder) / "robustness" / name)
    merging.merge_opts(cfg, opts)
    config.check_cfg(cfg)
    cfg.freeze()
    return cfg, tested.get("model_dir") or folder


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    register_datasets()
    jobs = [  # all of them first: a mistake in the last must not cost hours
        settings(folder, file, args.root, args.opts, args.load_epoch)
        for folder in args.model_dir
        for file in args.attack_config_file
    ]
    for cfg, model_dir in jobs:
        run.start(cfg, eval_only=True, model_dir=model_dir, load_epoch=args.load_epoch)
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
