"""Train and test with CoOp's command line.

    python train.py --root $DATA --seed 1 --trainer AdvPT \
        --dataset-config-file configs/datasets/oxford_pets.yaml \
        --config-file configs/trainers/AdvPT/vit_b16.yaml \
        --attack-config-file configs/attacks/advpt16.yaml \
        --output-dir output/oxford_pets/AdvPT/seed1 DATASET.NUM_SHOTS 16

With --dry-run it says what would be done and how many image forwards that takes, and does nothing.
Many GPUs: `torchrun --nproc_per_node N train.py ...` (docs/distributed.md).
"""

import sys

from tools.cli import run_tool
from tools.train import dry_run, main, parser, setup_cfg, what

__all__ = ["dry_run", "main", "parser", "setup_cfg", "what"]

if __name__ == "__main__":
    sys.exit(run_tool(main))
